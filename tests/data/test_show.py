from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from corpora import shards_of
from hypothesis import given
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.data.conversation_batches import ConversationBatches
from camelid.data.conversations import Conversation
from camelid.data.loader import PretrainBatches
from camelid.data.show import LEARNED, READ, show
from camelid.tokenizer.chat import chat_format_for

COLOUR = re.compile("\x1b\\[[0-9;]*m")


def batch_of(question: str, answer: str, sequence_length: int = 200) -> str:
    tokenizer = ByteTokenizer()
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat = chat_format_for(tokenizer, template=None, name="chatml")
    batches = ConversationBatches(
        [Conversation(messages, [], "here")], chat, sequence_length=sequence_length, batch_size=1, seed=0
    )
    return show(batches.batch(0), tokenizer)


def coloured(shown: str, shades: tuple[str, str]) -> str:
    """The text in these shades, without the title lines."""
    pieces = re.split("(\x1b\\[[0-9;]*m)", shown)
    return "".join(text for colour, text in zip(pieces[1::2], pieces[2::2], strict=True) if colour in shades)


def test_the_learned_tokens_are_the_green_ones() -> None:
    shown = batch_of("Who?", "I am.")

    assert coloured(shown, LEARNED) == "I am.<|im_end|>"
    assert coloured(shown, READ).startswith("<|im_start|>user⏎Who?<|im_end|>⏎<|im_start|>assistant⏎")


def test_each_sequence_has_a_title(tmp_path: Path) -> None:
    shards = shards_of(["ab", "c"], tmp_path)
    batches = PretrainBatches(shards, sequence_length=10, batch_size=1, seed=0)

    lines = COLOUR.sub("", show(batches.batch(0), ByteTokenizer())).split("\n")

    assert lines == [
        "sequence 0: 4 tokens, 3 learned",
        "<|endoftext|>ab<|endoftext|>",
        "sequence 1: 3 tokens, 2 learned",
        "<|endoftext|>c<|endoftext|>",
        "sequence 2: 3 tokens, 0 learned",
        "<|endoftext|>" * 3,
    ]


def test_neighbouring_tokens_have_different_shades() -> None:
    codes = COLOUR.findall(batch_of("abc", "d"))

    shades = [code for code in codes if code in (*READ, *LEARNED)]
    assert len(shades) > 20
    again_after_a_line_break = 3
    assert sum(one == other for one, other in pairwise(shades)) == again_after_a_line_break


@given(answer=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_no_text_commands_the_terminal(answer: str) -> None:
    shown = COLOUR.sub("", batch_of("q", f"\x1b[2J\x9b1m\u202e\r{answer}"))

    assert all(char.isprintable() or char == "\n" for char in shown)


def test_bytes_that_are_no_character_are_escaped() -> None:
    assert coloured(batch_of("q", "é\x1b"), LEARNED) == "\\xc3\\xa9\\x1b<|im_end|>"
