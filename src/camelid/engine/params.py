"""How to continue a prompt: one set of names in Python, in recipes and over HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass

from camelid.base.errors import SamplingError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next tokens and when to stop.

    `temperature = 0` is greedy. The filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p.

    Raises:
        SamplingError: a value outside the range that its comment states.
    """

    max_tokens: int | None = None
    """At most this many new tokens (≥ 1); None: up to the end of the context."""
    temperature: float = 0.0
    """≥ 0; divides the logits."""
    top_k: int = 0
    """Keep the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach top_p, in (0, 1] (Holtzman et al. 2019, §3.1)."""
    min_p: float = 0.0
    """Keep tokens with at least min_p times the top token's probability, in [0, 1] (Nguyen et al. 2024, §3)."""
    repetition_penalty: float = 1.0
    """> 0; divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019, §4.1)."""
    seed: int | None = None
    """Makes this request's samples reproducible; None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the reply, beside the model's own; not part of it."""
    ignore_eos: bool = False
    """Go on past the model's own end tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        self._require(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or a positive number")
        self._require(self.top_k >= 0, "top_k", "0 (all) or more")
        self._require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        self._require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "a positive number")
        self._require(self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1")
        self._require(all(self.stop), "stop", "texts that are not empty")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise SamplingError(f"{name} must be {expected}, not {getattr(self, name)!r}", where=name)


def _as_tuple(stop: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
