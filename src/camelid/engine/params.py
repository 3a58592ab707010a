"""How to continue a prompt: one set of names in Python, in recipes and over HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from camelid.base.errors import SamplingError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next tokens, when to stop, and how the request is served.

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
    n: int = 1
    """Replies to the prompt (≥ 1), which share the prompt's part of the cache."""
    truncate: bool = False
    """Cut the beginning off a prompt that leaves no room for `max_tokens` (or one) more; otherwise it is an error."""
    priority: int = 0
    """Requests of greater priority go first, between -1000 and 1000; none waits for ever."""
    owner: str = ""
    """On whose behalf the request is made: owners take turns when requests wait."""
    cache_salt: str = ""
    """Cached prefixes are shared between requests with the same salt only; how long a prompt takes tells others
    nothing then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._require(self.max_tokens is None or _is_whole(self.max_tokens, 1), "max_tokens", "a whole number from 1")
        self._require(_is_number(self.temperature) and self.temperature >= 0, "temperature", "0 (greedy) or more")
        self._require(_is_whole(self.top_k, 0), "top_k", "0 (all) or a whole number above it")
        self._require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        penalty = self.repetition_penalty
        self._require(_is_number(penalty) and penalty > 0, "repetition_penalty", "a positive number")
        in_range = self.seed is None or (_is_whole(self.seed, 0) and self.seed < 2**63)
        self._require(in_range, "seed", "a whole number from 0 to 2^63 - 1")
        self._require(all(isinstance(text, str) and text for text in self.stop), "stop", "texts that are not empty")
        self._require(all(_is_whole(i, 0) for i in self.stop_token_ids), "stop_token_ids", "token ids")
        self._require(isinstance(self.ignore_eos, bool), "ignore_eos", "true or false")

        self._require(_is_whole(self.n, 1), "n", "a whole number from 1")
        self._require(isinstance(self.truncate, bool), "truncate", "true or false")
        self._require(_is_whole(self.priority, -1000) and self.priority <= 1000, "priority", "between -1000 and 1000")
        self._require(isinstance(self.owner, str), "owner", "a text")
        self._require(isinstance(self.cache_salt, str), "cache_salt", "a text")

    def samples(self) -> list[SamplingParams]:
        """The settings of each of the `n` replies; the first one's seed is this one's, the others' follow from it."""
        if self.n == 1:
            return [self]
        return [replace(self, n=1, seed=self._seed_of(number)) for number in range(self.n)]

    def _seed_of(self, number: int) -> int | None:
        if self.seed is None or number == 0:
            return self.seed
        digest = blake2b(number.to_bytes(8, "little"), digest_size=8, key=self.seed.to_bytes(8, "little")).digest()
        return int.from_bytes(digest, "little") >> 1

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise SamplingError(f"{name} must be {expected}, not {getattr(self, name)!r}", where=name)


def _as_tuple(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
