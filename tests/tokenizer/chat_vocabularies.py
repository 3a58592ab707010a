"""Small vocabularies for chat tests, and the random conversations they are tested with."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import sentencepiece
import tokenizers
from hypothesis import strategies as st

from camelid.tokenizer.base import SpecialTokens, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIALS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]
CHATML_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>\n\n\n Hello, who are you?",
    "<|im_start|>user\nWhat is the weather in Paris?<|im_end|>\n", '{"type": "function", "name": "weather"}\n\n',
    "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST] Good day. ", "café ☺ \n\n\n\t  two  spaces\r\n",
]  # fmt: skip


class ByteLevelTokenizer(Tokenizer):
    """A byte-level BPE in the library `tokenizers`, which transformers can wrap too."""

    def __init__(self, backend: tokenizers.Tokenizer, specials: Sequence[str], bos: str | None, eos: str) -> None:
        self.backend = backend
        ids = {token: backend.token_to_id(token) for token in specials}
        self.special = SpecialTokens(ids=ids, bos=ids[bos] if bos else None, eos=ids[eos])
        self._bytes = {char: bytes([byte]) for byte, char in byte_alphabet().items()}

    @property
    def vocab_size(self) -> int:
        return int(self.backend.get_vocab_size())

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        self.backend.encode_special_tokens = not allow_special
        text = text.encode("utf-8", "replace").decode()
        ids = self.backend.encode(text, add_special_tokens=False).ids
        self.backend.encode_special_tokens = False
        return [*([self.special.bos] if bos else []), *ids, *([self.special.eos] if eos else [])]

    def token_bytes(self, token_id: int) -> bytes:
        token = self.backend.id_to_token(token_id)
        if token in self.special.ids:
            return token.encode()
        return b"".join(self._bytes[char] for char in token)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        kept = [i for i in ids if not (skip_special and i in self.special.ids.values())]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, which puts a space before each text that it encodes."""

    def __init__(self, model: bytes) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.special = SpecialTokens(ids={"<unk>": 0, "<s>": 1, "</s>": 2}, bos=1, eos=2, unk=0, add_bos=True)

    @property
    def vocab_size(self) -> int:
        return int(self.model.vocab_size())

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        parts = re.split("(</?s>)", text) if allow_special else [text]
        ids = [
            i for n, part in enumerate(parts) for i in ([self.special.ids[part]] if n % 2 else self.model.encode(part))
        ]
        return [*([1] if bos else []), *ids, *([2] if eos else [])]

    def token_bytes(self, token_id: int) -> bytes:
        piece = self.model.id_to_piece(token_id)
        return bytes([int(piece[1:-1], 16)]) if self.model.is_byte(token_id) else piece.replace("▁", " ").encode()

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace").removeprefix(" ")

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def llama3_tokenizer() -> ByteLevelTokenizer:
    return ByteLevelTokenizer(_train(LLAMA3_SPECIALS), LLAMA3_SPECIALS, "<|begin_of_text|>", "<|end_of_text|>")


@cache
def vision_tokenizer() -> ByteLevelTokenizer:
    """A Llama 3's, with a token for images."""
    specials = [*LLAMA3_SPECIALS, "<|image|>"]
    return ByteLevelTokenizer(_train(specials), specials, "<|begin_of_text|>", "<|end_of_text|>")


@cache
def chatml_tokenizer() -> ByteLevelTokenizer:
    return ByteLevelTokenizer(_train(CHATML_SPECIALS), CHATML_SPECIALS, None, "<|im_end|>")


@cache
def llama2_tokenizer() -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def _train(specials: Sequence[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(specials), show_progress=False,
        initial_alphabet=sorted(byte_alphabet().values()),
    )  # fmt: skip
    backend.train_from_iterator(TEXT, trainer)
    return backend


SPELLINGS = [
    "<|image|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|eot",
    "_id|>",
    "<|",
    "<",
    "|>",
    "</s>",
    "<|EOT_ID|>",
]
texts = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.sampled_from([*SPELLINGS, " ", "\n", "\n\n", "\t", "a", "Hello", "é", "☺", '"', "\\", "'"]), max_size=6
    ).map("".join),
)
names = st.sampled_from(["weather", "café", "brave_search", "code_interpreter"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
arguments = (
    st.dictionaries(texts, values, max_size=2)
    | st.builds(lambda query: {"query": query}, texts)
    | st.builds(lambda code: {"code": code}, texts)
)
tools = st.lists(
    st.builds(
        lambda name, about, parameters: {
            "type": "function",
            "function": {"name": name, "description": about, "parameters": parameters},
        },
        names, texts, arguments,
    ),
    max_size=2,
    unique_by=lambda tool: tool["function"]["name"],
)  # fmt: skip


def message(role: str) -> st.SearchStrategy[dict[str, Any]]:
    """A message of a role, its content as text or parts."""
    contents = texts | st.lists(texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=2)
    return st.fixed_dictionaries({"role": st.just(role), "content": contents})


def showing() -> st.SearchStrategy[dict[str, Any]]:
    """A user's message of texts and images."""
    images = st.sampled_from([{"type": "image"}, {"type": "image_url", "image_url": {"url": "data:…"}}])
    parts = texts.map(lambda text: {"type": "text", "text": text}) | images
    return st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(parts, min_size=1, max_size=5)})


def plain(message: dict) -> dict:
    """The message as transformers' templates want it: one text, arguments as an object."""
    message = dict(message)
    if isinstance(message["content"], list):
        message["content"] = "".join(part["text"] for part in message["content"])
    if "tool_calls" in message:
        function = message["tool_calls"][0]["function"]
        inputs = function["arguments"]
        inputs = json.loads(inputs) if isinstance(inputs, str) else inputs
        message["tool_calls"] = [{"type": "function", "function": {**function, "arguments": inputs}}]
    return message


calling = st.builds(
    lambda content, name, inputs, as_text: {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": "c",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(inputs) if as_text else inputs},
            }
        ],
    },
    st.none() | texts, names, arguments, st.booleans(),
)  # fmt: skip
systems = st.lists(message("system"), max_size=1)
free_turns = st.lists(st.sampled_from(["user", "assistant"]).flatmap(message), min_size=1, max_size=4)
tool_turns = st.lists(st.sampled_from(["user", "assistant", "tool"]).flatmap(message) | calling, min_size=1, max_size=4)
pairs = st.lists(st.tuples(message("user"), message("assistant")), max_size=2).map(
    lambda ps: [m for p in ps for m in p]
)
