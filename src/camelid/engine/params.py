"""How to continue a prompt: one set of names in Python, in recipes and over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

from camelid.base.errors import SamplingError

GRAMMARS = ("json_schema", "regex", "choice", "grammar")
"""The fields that give a reply its form; one of them at most."""

FILTERS = ("top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "xtc_probability")
"""The fields that mirostat takes the place of."""

MAX_SAMPLES = 2**16
"""Of `n`: every reply is a request with settings of its own, some 20 µs and 1 KB before anything runs."""

MAX_SHOWN = 100
"""Characters of a wrong value in a message."""

LARGEST_SHIFT = 1e30
"""What biases and penalties may add to a logit: fp32 still adds up thousands of them."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next tokens, when to stop, and how the request is served.

    `temperature = 0` is greedy. The order in which the others apply is that of `camelid.engine.sampling`.

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
    top_n_sigma: float = 0.0
    """Keep tokens at most so many standard deviations below the best score; 0: all (Tang et al. 2024)."""
    typical_p: float = 1.0
    """Keep tokens of nearly average information, up to this probability, in (0, 1] (Meister et al. 2022)."""
    xtc_probability: float = 0.0
    """How often, in [0, 1], XTC drops all but the least likely of the tokens that reach `xtc_threshold`."""
    xtc_threshold: float = 0.1
    """In (0, 1]."""
    mirostat_tau: float = 0.0
    """> 0: mirostat 2 keeps the surprise of the drawn tokens near so many bits, in place of all filters above
    (Basu et al. 2021); 5 is usual."""
    mirostat_eta: float = 0.1
    """How quickly mirostat follows, in (0, 1]."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the reply has already."""
    frequency_penalty: float = 0.0
    """Taken off the same once for each time that they occur."""
    dry_multiplier: float = 0.0
    """≥ 0; scales the penalty on tokens that would go on with a repeated sequence (DRY); 0: none."""
    dry_base: float = 1.75
    """≥ 1; the penalty's growth with each repeated token."""
    dry_allowed_length: int = 2
    """Repeats shorter than this (≥ 1) are free."""
    dry_range: int = 0
    """Look at so many last tokens of prompt and reply; 0: all."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """No repeat goes across a token with one of these texts inside. An engine without a vocabulary knows no texts."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to tokens' logits; a mapping from token id to number is taken as well."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that must not come up."""
    banned_strings: tuple[str, ...] = ()
    """Texts that must not come up, however they are cut into tokens."""
    json_schema: str | Mapping[str, Any] | None = None
    """The reply is JSON that this schema describes, as text or as a mapping. One of this and the next three."""
    regex: str | None = None
    """The reply as a whole matches this regular expression (Rust's syntax; no look-around)."""
    choice: tuple[str, ...] = ()
    """The reply is one of these texts."""
    grammar: str | None = None
    """The reply follows this grammar, in Lark's notation or in GBNF."""
    min_tokens: int = 0
    """No stop token and no stop text ends the reply before it has so many tokens."""
    logprobs: bool = False
    """Give each token's log-probability by the model itself, before everything above."""
    top_logprobs: int = 0
    """With it those of so many likeliest tokens, at most 100."""
    prompt_logprobs: int | None = None
    """Give the log-probabilities of the prompt's tokens, and of so many likeliest at each place; None: none."""
    seed: int | None = None
    """Makes this request's samples reproducible; None: fresh randomness."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the reply, beside the model's own; not part of it."""
    ignore_eos: bool = False
    """Go on past the model's own end tokens."""
    n: int = 1
    """Replies to the prompt, from 1 to 65,536, which share the prompt's part of the cache."""
    truncate: bool = False
    """Cut the beginning off a prompt that leaves no room for `max_tokens` (or one) more; otherwise it is an error."""
    adapter: str | None = None
    """The name of the engine's adapter that answers; None: the model as it is."""
    priority: int = 0
    """Requests of greater priority go first, between -1000 and 1000; none waits for ever."""
    owner: str = ""
    """On whose behalf the request is made: owners take turns when requests wait."""
    cache_salt: str = ""
    """Cached prefixes are shared between requests with the same salt only; how long a prompt takes tells others
    nothing then."""

    def __post_init__(self) -> None:
        for name in ("stop", "banned_strings", "dry_sequence_breakers"):
            self._require_texts(name)
        for name in ("stop_token_ids", "banned_token_ids"):
            ids = _as_tuple(getattr(self, name))
            self._require(ids is not None and all(_is_whole(i, 0) for i in ids), name, "token ids")
            object.__setattr__(self, name, ids)
        object.__setattr__(self, "logit_bias", _as_pairs(self.logit_bias))
        self._require(self.max_tokens is None or _is_whole(self.max_tokens, 1), "max_tokens", "a whole number from 1")
        self._require(_is_number(self.temperature) and self.temperature >= 0, "temperature", "0 (greedy) or more")
        self._require(_is_whole(self.top_k, 0), "top_k", "0 (all) or a whole number above it")
        self._require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        penalty = self.repetition_penalty
        self._require(_is_number(penalty) and penalty > 0, "repetition_penalty", "a positive number")
        in_range = self.seed is None or (_is_whole(self.seed, 0) and self.seed < 2**63)
        self._require(in_range, "seed", "a whole number from 0 to 2^63 - 1")
        self._require(isinstance(self.ignore_eos, bool), "ignore_eos", "true or false")

        self._check_filters()
        self._check_penalties()
        self._check_grammar()
        self._require(_is_whole(self.min_tokens, 0), "min_tokens", "a whole number from 0")
        in_reach = self.max_tokens is None or self.min_tokens <= self.max_tokens
        self._require(in_reach, "min_tokens", f"at most max_tokens ({self.max_tokens})")
        self._require(isinstance(self.logprobs, bool), "logprobs", "true or false")
        self._require(_is_whole(self.top_logprobs, 0) and self.top_logprobs <= 100, "top_logprobs", "from 0 to 100")
        self._require(self.logprobs or not self.top_logprobs, "top_logprobs", "0 without logprobs")
        prompt = self.prompt_logprobs
        in_range = prompt is None or (_is_whole(prompt, 0) and prompt <= 100)
        self._require(in_range, "prompt_logprobs", "from 0 to 100, or None")
        self._require(_is_whole(self.n, 1) and self.n <= MAX_SAMPLES, "n", f"a whole number from 1 to {MAX_SAMPLES}")
        self._require(isinstance(self.truncate, bool), "truncate", "true or false")
        self._require(_is_whole(self.priority, -1000) and self.priority <= 1000, "priority", "between -1000 and 1000")
        fits = self.adapter is None or (isinstance(self.adapter, str) and bool(self.adapter))
        self._require(fits, "adapter", "the name of an adapter")
        self._require(isinstance(self.owner, str), "owner", "a text")
        self._require(isinstance(self.cache_salt, str), "cache_salt", "a text")

    def _check_filters(self) -> None:
        require = self._require
        require(_is_number(self.top_n_sigma) and self.top_n_sigma >= 0, "top_n_sigma", "0 (all) or more")
        require(_is_number(self.typical_p) and 0 < self.typical_p <= 1, "typical_p", "above 0 and at most 1")
        require(_is_number(self.xtc_probability) and 0 <= self.xtc_probability <= 1, "xtc_probability", "from 0 to 1")
        in_range = _is_number(self.xtc_threshold) and 0 < self.xtc_threshold <= 1
        require(in_range, "xtc_threshold", "above 0 and at most 1")
        require(_is_number(self.mirostat_tau) and self.mirostat_tau >= 0, "mirostat_tau", "0 (off) or more")
        in_range = _is_number(self.mirostat_eta) and 0 < self.mirostat_eta <= 1
        require(in_range, "mirostat_eta", "above 0 and at most 1")
        alone = not self.mirostat_tau or all(getattr(self, name) == getattr(SamplingParams, name) for name in FILTERS)
        require(alone, "mirostat_tau", "0 where other filters are set: mirostat takes their place")

    def _check_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            self._require(_is_shift(getattr(self, name)), name, f"a number from {-LARGEST_SHIFT} to {LARGEST_SHIFT}")
        self._require(_is_number(self.dry_multiplier) and self.dry_multiplier >= 0, "dry_multiplier", "0 (off) or more")
        in_range = _is_number(self.dry_base) and 1 <= self.dry_base <= 100
        self._require(in_range, "dry_base", "from 1 to 100")
        self._require(_is_whole(self.dry_allowed_length, 1), "dry_allowed_length", "a whole number from 1")
        self._require(_is_whole(self.dry_range, 0), "dry_range", "0 (all) or a whole number above it")
        pairs = self.logit_bias
        fits = all(_is_whole(token, 0) and _is_shift(value) for token, value in pairs)
        numbers = f"numbers from {-LARGEST_SHIFT} to {LARGEST_SHIFT}"
        self._require(fits, "logit_bias", f"a mapping from token ids to {numbers}")
        self._require(len(dict(pairs)) == len(pairs), "logit_bias", "one number for each token")

    def _check_grammar(self) -> None:
        self._require_texts("choice")
        schema = self.json_schema
        fits = schema is None or isinstance(schema, Mapping) or (isinstance(schema, str) and bool(schema))
        self._require(fits, "json_schema", "a schema as text or as a mapping")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            self._require(value is None or (isinstance(value, str) and bool(value)), name, "a text that is not empty")
        given = [name for name in GRAMMARS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise SamplingError(f"a reply follows one grammar, not {' and '.join(given)}", where=given[1])

    @property
    def has_grammar(self) -> bool:
        """Whether the reply has a form to follow."""
        return any(getattr(self, name) not in (None, ()) for name in GRAMMARS)

    @cached_property
    def adjusts_logits(self) -> bool:
        """Whether anything is added to logits or ruled out by these settings alone."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.dry_multiplier, self.repetition_penalty != 1)
        rules = (self.logit_bias, self.banned_token_ids, self.banned_strings, self.min_tokens)
        return any(penalties) or any(rules)

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

    def _require_texts(self, name: str) -> None:
        texts = _as_tuple(getattr(self, name))
        fits = texts is not None and all(isinstance(text, str) and text for text in texts)
        self._require(fits, name, "texts that are not empty")
        object.__setattr__(self, name, texts)

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise SamplingError(f"{name} must be {expected}, not {_shown(getattr(self, name))}", where=name)


def _as_tuple(values: object) -> tuple[Any, ...] | None:
    """Values as a tuple, a text as the only one; None if they are no such thing."""
    if isinstance(values, str):
        return (values,)
    return tuple(values) if isinstance(values, Iterable) else None


def _shown(value: object) -> str:
    """A wrong value in a message: cut off, and not at all where Python refuses to print it (5,000 digits)."""
    try:
        text = repr(value)
    except ValueError:
        return "what cannot be printed"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _as_pairs(bias: object) -> tuple[tuple[Any, Any], ...]:
    """A mapping, or its items, as a tuple; JSON's keys are texts."""
    items = bias.items() if isinstance(bias, Mapping) else bias
    try:
        pairs = [(token, value) for token, value in items]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise SamplingError("logit_bias must be a mapping from token ids to numbers", where="logit_bias") from None
    return tuple((int(t) if isinstance(t, str) and t.isdecimal() else t, value) for t, value in pairs)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_shift(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SHIFT
