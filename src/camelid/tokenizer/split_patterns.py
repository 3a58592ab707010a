"""The regular expressions that cut a text before its bytes are merged, one for each family of vocabularies.

Those named here match every character of any text, so a text is the matches end to end; `gguf_pre` has sequences, in
which each expression cuts what the ones before it left into its matches and what lies between. tiktoken 0.14 and
`tokenizers` 0.23 give every code point the same classes (both use Rust's regex-syntax), so they cut alike; only the
`Digits` step of `tokenizers` knows 13 digits more, of a newer Unicode version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Cuts: TypeAlias = tuple[str, ...]
"""Expressions that are applied one after the other."""

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

TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral NeMo's: Llama 4's without contractions, every digit alone."""

QWEN2_MARKS: Final = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}]+[", r"\s\p{L}\p{M}\p{N}]+[")
"""Qwen 3.5: Qwen 2's with combining marks among the letters."""

WITHOUT_CONTRACTIONS: Final = QWEN2.removeprefix(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|")
"""Qwen 2's, where an apostrophe stays with what follows it."""

SEED_CODER: Final = QWEN2.replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+")
"""Qwen 2's with every line break cut from the punctuation before it."""

BAILING: Final = QWEN2.replace(r"\s*[\r\n]+", r"\s*[\r\n]").replace(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"
)
"""Qwen 2's with every line break alone."""

PHRASES: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""EXAONE's mixtures of experts: single letters with spaces between them stay together."""

BLANKS_BY_POWERS: Final = LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + (
    "".join(rf"\s{{{count}}}(?!\S)|" for count in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
)
"""Jais 2: Llama 3's with runs of blanks cut into powers of two."""

COMPLETE: Final = frozenset(
    {
        *(GPT2, GPT2_DIGITS, LLAMA3, QWEN2, LLAMA4, TEKKEN, QWEN2_MARKS, WITHOUT_CONTRACTIONS, SEED_CODER, BAILING),
        *(PHRASES, BLANKS_BY_POWERS),
    }
)
"""Expressions that leave no gaps between their matches, as tiktoken needs them."""


def read_cuts(pre_tokenizer: Mapping[str, Any] | None) -> Cuts | None:
    """The expressions that cut as a tokenizer.json's `pre_tokenizer` does; None where something else cuts, too."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not steps or not _is_plain_byte_level(steps[-1]):
        return None
    cuts = [_expression(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        cuts.append(GPT2)
    if not cuts or None in cuts:
        return None
    found = tuple(str(cut) for cut in cuts)
    return (GPT2_DIGITS,) if found == (_DIGIT, GPT2) else found


def pre_tokenizer_json(cuts: Cuts) -> dict[str, Any]:
    """A tokenizer.json's `pre_tokenizer` that cuts by expressions and then spells bytes as characters."""
    splits = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in cuts]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


def _is_plain_byte_level(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "ByteLevel" and not step.get("add_prefix_space", True)


def _expression(step: Mapping[str, Any]) -> str | None:
    """What a step cuts off, each match a piece and each gap one."""
    if step.get("type") == "Digits":
        return _DIGIT if step.get("individual_digits") else rf"{_DIGIT}+"
    pattern = step.get("pattern")
    if step.get("type") != "Split" or not isinstance(pattern, dict):
        return None
    expression = pattern.get("Regex")
    if not isinstance(expression, str):
        return None
    match (step.get("behavior"), bool(step.get("invert"))):
        case ("Isolated", False):
            return expression
        case ("Removed", True) if expression in COMPLETE:  # no gaps, so dropping them changes nothing
            return expression
    return None


_DIGIT: Final = r"\p{N}"
