"""Are two checkpoints the same model? Their tokens, logits and greedy continuations, side by side.

    comparison = verify(Path("llama-hf"), Path("llama.gguf"))
    print(comparison.text())
    assert not comparison.violations(LOSSLESS)

One model is in memory at a time. Both compute in the same dtype with unpacked weights, so that two files that hold the
same numbers give the same logits bit for bit, whatever their formats.

Shape suffixes: S tokens of a text, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from camelid.base.errors import FormatError
from camelid.llm import load, sampling_params

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.llm import LLM

TEXTS: Final = (
    "The river rises in the hills above the town and reaches the sea two days later.",
    "Once upon a time there was a small grey donkey who wanted to see what was behind the mountain.",
    "Water boils at 100 degrees Celsius at sea level; at 3,000 metres it does so at about 90.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n",
    "Q: What is the capital of France?\nA: Paris.\n\nQ: And of Portugal?\nA:",
    '{"name": "camelid", "legs": 4, "tags": ["woolly", "calm"], "url": null}',
    "Der Zug nach München fährt um 7:45 Uhr ab, wenn er nicht wieder Verspätung hat.",
    "El año pasado llovió tanto que el puente viejo casi desapareció bajo el agua.",
    "春の朝、庭の梅が咲き始めた。 Доброе утро, как дела?",
    "  two spaces,\ttab\n\n\nthree newlines — “quotes”, naïve café, 😀 and 12345678.90",
)
"""What is compared: prose, numbers, code, a dialogue, JSON, other languages and scripts, odd spacing."""

GREEDY_TOKENS: Final = 64
"""How far continuations are followed."""

PROMPT_TOKENS: Final = 8
"""Of each text, what a continuation starts from."""


@dataclass(frozen=True)
class Budget:
    """How far two models may be apart; None: as far as they like."""

    max_logit: float | None = None
    """Largest difference of two logits."""
    max_kl: float | None = None
    """Mean Kullback-Leibler divergence in nats per token."""


LOSSLESS: Final = Budget(max_logit=0.0, max_kl=0.0)
"""The same numbers in another format."""

LOSSY: Final = Budget(max_kl=0.1)
"""What a good 4-bit quantisation of a small model stays within."""


@dataclass(frozen=True)
class Comparison:
    """What was found; logits, divergence and bits are over all tokens of all texts."""

    num_tokens: int
    retokenized: tuple[str, ...]
    """Texts that the two tokenizers cut differently."""
    max_logit_difference: float
    mean_logit_difference: float
    mean_kl: float
    """KL(A ‖ B) of the next token, in nats."""
    max_kl: float
    first_divergence: int | None
    """Number of greedy tokens that all continuations share; None: all of them agree to the end."""
    num_diverged: int
    """Continuations that differ somewhere."""
    num_greedy_tokens: int
    """How far each continuation was followed."""
    bits_per_byte: tuple[float, float]
    """Of the texts, under A and under B."""

    def violations(self, budget: Budget) -> list[str]:
        """What is past the budget, in words; other tokens always are."""
        found = [f"{len(self.retokenized)} texts have other tokens"] if self.retokenized else []
        measured = (
            ("the largest logit difference", self.max_logit_difference, budget.max_logit),
            ("the mean KL divergence", self.mean_kl, budget.max_kl),
        )
        # Written so that not-a-number is past every budget.
        found += [f"{what} is {value:.3g}, past {limit:g}" for what, value, limit in measured if _past(value, limit)]
        return found

    def text(self) -> str:
        """A table for people."""
        one, other = self.bits_per_byte
        total = len(TEXTS)
        agreed = (
            f"all {total} continuations of {self.num_greedy_tokens} tokens agree"
            if self.first_divergence is None
            else f"{self.num_diverged} of {total} differ, the first after {self.first_divergence} tokens"
        )
        rows = {
            "tokens": f"{len(self.retokenized)} of {total} texts differ" if self.retokenized else "the same",
            "logits": f"max |Δ| {self.max_logit_difference:.3g}, mean |Δ| {self.mean_logit_difference:.3g}",
            "KL": f"mean {self.mean_kl:.3g}, max {self.max_kl:.3g} nats per token ({self.num_tokens} tokens)",
            "greedy": agreed,
            "bits per byte": f"{one:.4f} → {other:.4f} (Δ {other - one:+.4f})",
        }
        return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def verify(
    one: str | Path,
    other: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> Comparison:
    """Load two models of any format, one after the other, and compare them.

    Args:
        one: the reference, as `camelid.load` takes it.
        other: what is compared with it.
        device: where both compute; None: the best present.
        dtype: that both compute in; None: float32 where it fits.

    Raises:
        FormatError: their vocabularies have different sizes, so nothing can be compared.
        CamelidError: one of them cannot be opened.
    """
    first = _Record.of(load(one, device=device, dtype=dtype, packed=False))
    second = _Record.of(load(other, device=device, dtype=dtype, packed=False), inputs=first.ids)
    if first.logits[0].shape[1] != second.logits[0].shape[1]:
        raise FormatError(
            f"the vocabularies have {first.logits[0].shape[1]} and {second.logits[0].shape[1]} entries",
            where=other,
            hint="two models are compared that are not the same",
        )
    return _compare(first, second)


@dataclass(frozen=True)
class _Record:
    """What one model makes of the texts."""

    own_ids: list[list[int]]
    """What its own tokenizer makes of them."""
    ids: list[list[int]]
    """What it was given."""
    logits: list[Tensor]
    """fp32 [S, V] on the CPU."""
    continuations: list[list[int]]

    @classmethod
    def of(cls, llm: LLM, inputs: Sequence[Sequence[int]] | None = None) -> _Record:
        context = llm.context_length
        own = [llm.encode_prompt(text)[:context] for text in TEXTS]
        ids = own if inputs is None else [list(given) for given in inputs]
        room = min(GREEDY_TOKENS, context - PROMPT_TOKENS)
        greedy = sampling_params({"max_tokens": room, "ignore_eos": True})
        # By the engine, since a model may have more ids than its tokenizer has texts for.
        replies = llm.engine.generate([given[:PROMPT_TOKENS] for given in ids], greedy)
        return cls(own, ids, [llm.logits(given).cpu() for given in ids], [list(reply.token_ids) for reply in replies])


def _compare(one: _Record, other: _Record) -> Comparison:
    largest = total = kl_total = kl_max = 0.0
    nats = [0.0, 0.0]
    for ids, one_SV, other_SV in zip(one.ids, one.logits, other.logits, strict=True):
        difference_SV = (one_SV - other_SV).abs()
        largest = _larger(largest, float(difference_SV.max()))
        total += float(difference_SV.mean(dim=1, dtype=torch.float64).sum())
        logs = [logits_SV.double().log_softmax(-1) for logits_SV in (one_SV, other_SV)]
        kl_S = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).clamp_min(0)
        kl_total, kl_max = kl_total + float(kl_S.sum()), _larger(kl_max, float(kl_S.max()))
        targets = torch.tensor(ids[1:])[:, None]
        nats = [sum_ - float(log_SV[:-1].gather(1, targets).sum()) for sum_, log_SV in zip(nats, logs, strict=True)]
    num_tokens = sum(map(len, one.ids))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    shared = [
        next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        for left, right in zip(one.continuations, other.continuations, strict=True)
    ]
    diverged = [place for place in shared if place is not None]
    bits = [value / num_bytes / math.log(2) for value in nats]
    return Comparison(
        num_tokens=num_tokens,
        retokenized=tuple(t for t, a, b in zip(TEXTS, one.own_ids, other.own_ids, strict=True) if a != b),
        max_logit_difference=largest,
        mean_logit_difference=total / num_tokens,
        mean_kl=kl_total / num_tokens,
        max_kl=kl_max,
        first_divergence=min(diverged) if diverged else None,
        num_diverged=len(diverged),
        num_greedy_tokens=max(map(len, one.continuations)),
        bits_per_byte=(bits[0], bits[1]),
    )


def _larger(one: float, other: float) -> float:
    """The maximum, which not-a-number is."""
    return other if not other <= one else one


def _past(value: float, limit: float | None) -> bool:
    return limit is not None and not value <= limit
