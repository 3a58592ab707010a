"""Training a byte-level BPE with Llama 3's pattern and control tokens.

tokenizer = train_tokenizer(["some text", "some more"], vocab_size=8192)
tokenizer.save(Path("my-tokenizer"))
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from camelid.base.errors import TokenizerError
from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET, BytePairModel, tokenizer_json
from camelid.tokenizer.hf_json import on_library, on_tiktoken
from camelid.tokenizer.split_patterns import LLAMA3

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import tokenizers

    from camelid.tokenizer.base import Tokenizer

SPECIAL_TOKENS: Final = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(7)),
)
"""Llama 3's control tokens; of the 246 reserved ones only seven, as each is a row of a small model's embedding."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> Tokenizer:
    """Learn a byte-level BPE; the same texts always give the same vocabulary.

    Ids are laid out as Llama 3's: bytes, merges in the order they were learnt, control tokens. A text with too few
    different pairs gives a smaller vocabulary than asked for.

    Args:
        texts: the training text, in pieces of any size; no merge reaches over their ends.
        vocab_size: tokens in all, bytes and control tokens included.
        special_tokens: `<|begin_of_text|>`, `<|end_of_text|>` and `<|finetune_right_pad_id|>` among them get the roles
            that their names say.
        min_frequency: how often a pair must occur to be merged.

    Raises:
        TokenizerError: a control token comes twice, or `vocab_size` leaves no room for merges.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    if len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError("a control token comes twice", where="special_tokens")
    num_merged = vocab_size - len(special_tokens)
    if num_merged <= len(BYTE_ALPHABET):
        smallest = len(BYTE_ALPHABET) + len(special_tokens) + 1
        raise TokenizerError(
            f"a vocabulary of {vocab_size} has no room for merges",
            where="vocab_size",
            hint=f"256 bytes and {len(special_tokens)} control tokens are in every vocabulary: take {smallest} or more",
        )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_merged,
        min_frequency=min_frequency,
        initial_alphabet=list(BYTE_ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return _with_control_tokens(learner, special_tokens)


def _with_control_tokens(learner: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> Tokenizer:
    learned = json.loads(learner.to_str())["model"]
    ids = {name: len(learned["vocab"]) + i for i, name in enumerate(special_tokens)}
    special = SpecialTokens(
        ids=ids,
        bos=ids.get("<|begin_of_text|>"),
        eos=ids.get("<|end_of_text|>"),
        pad=ids.get("<|finetune_right_pad_id|>"),
        add_bos="<|begin_of_text|>" in ids,
    )
    model = BytePairModel(
        vocab=learned["vocab"],
        merges=[(left, right) for left, right in learned["merges"]],
        cuts=(LLAMA3,),
        added=[AddedToken(name, token_id, special=True) for name, token_id in ids.items()],
    )
    text = tokenizer_json(model, special)
    return on_tiktoken(model, special, lambda: text) or on_library(text, special, "the trained vocabulary")
