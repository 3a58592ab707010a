"""The regular expressions that cut a text before its bytes are merged, one for each family of vocabularies.

All of them match every character of any text, so a text is the matches end to end. tiktoken 0.14 and `tokenizers` 0.23
give every code point the same classes (both use Rust's regex-syntax), so they cut alike; only the `Digits` step of
`tokenizers` knows 13 digits more, of a newer Unicode version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2, and the `ByteLevel` pre-tokenizer of `tokenizers`."""

GPT2_DIGITS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""GPT-2's after every digit was cut off alone (StarCoder, SmolLM).

The two cuts in one expression: no match holds a digit and something else, and the blanks before a digit are whole,
because in two cuts they are the end of their stretch.
"""

LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3 (Meta, llama3/tokenizer.py)."""

QWEN2: Final = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""Qwen 2: Llama 3's with every digit alone."""

LLAMA4: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 4 (Meta, llama4/tokenizer.py)."""

_KNOWN: Final = frozenset({GPT2, GPT2_DIGITS, LLAMA3, QWEN2, LLAMA4})

GGUF_PRE: Final = {
    "gpt-2": GPT2,
    "phi-2": GPT2,
    "mpt": GPT2,
    "olmo": GPT2,
    "starcoder": GPT2_DIGITS,
    "refact": GPT2_DIGITS,
    "smollm": GPT2_DIGITS,
    "codeshell": GPT2_DIGITS,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "llama-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "smaug-bpe": LLAMA3,
    "qwen2": QWEN2,
    "stablelm2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "llama4": LLAMA4,
    "gpt-4o": LLAMA4,
}
"""`tokenizer.ggml.pre` → expression."""

GGUF_IGNORES_MERGES: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "llama4"})
"""Values of `tokenizer.ggml.pre` under which a whole match that is a token is taken at once."""

GGUF_ADDS_BOS: Final = frozenset({"llama3", "llama-v3", "llama-bpe"})
"""Values of `tokenizer.ggml.pre` whose models start with the begin-of-sequence token if the file does not say."""


def known_pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The one expression that cuts as a tokenizer.json's `pre_tokenizer` does; None if it is none of ours."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not steps or not _is_plain_byte_level(steps[-1]):
        return None
    splits_itself = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2 if splits_itself else None
    if len(steps) > 2:
        return None
    if steps[0].get("type") == "Digits" and steps[0].get("individual_digits"):
        return GPT2_DIGITS if splits_itself else None
    pattern = _split_pattern(steps[0])
    return pattern if pattern in _KNOWN and not splits_itself else None


def pre_tokenizer_json(pattern: str) -> dict[str, Any]:
    """A tokenizer.json's `pre_tokenizer` that cuts by an expression and then spells bytes as characters."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _is_plain_byte_level(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "ByteLevel" and not step.get("add_prefix_space", True)


def _split_pattern(step: Mapping[str, Any]) -> str | None:
    """The expression of a Split whose matches are the pieces; since ours leave no gaps, gaps need no care."""
    keeps_matches = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    pattern = step.get("pattern")
    if step.get("type") != "Split" or not keeps_matches or not isinstance(pattern, dict):
        return None
    expression = pattern.get("Regex")
    return expression if isinstance(expression, str) else None
