"""What generates token ids, whichever engine it is: the shape that trainers, evaluators and `LLM` hold on to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from camelid.base.errors import EngineError
    from camelid.engine.params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""Why a reply ended: a stop token; `max_tokens` or the end of the context; a cancel; an error of this request alone."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model itself took a token to be."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens of the place and their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step added to one request."""

    request_id: int
    token_ids: tuple[int, ...]
    """New tokens; a stop token is not among them."""
    finish_reason: FinishReason | None = None
    """None while the request goes on."""
    stop_token: int | None = None
    """The token that ended the reply, if `finish_reason` is "stop"."""
    error: EngineError | None = None
    """What went wrong, if `finish_reason` is "error"."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, where the request asks for them."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """With the first token: one for each token of the prompt but the first, where the request asks for them."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply."""

    token_ids: list[int]
    """The reply; neither the prompt nor the stop token is part of it."""
    finish_reason: FinishReason
    stop_token: int | None = None
    """The token that ended the reply, if `finish_reason` is "stop"."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


class Generator(Protocol):
    """An engine that a trainer can roll out with: this one, or another behind the same two methods."""

    def generate(
        self, prompts: Iterable[Iterable[int]], params: SamplingParams | Iterable[SamplingParams]
    ) -> list[Completion]:
        """One completion per prompt, in order, or `params.n` of each; one `params` for all prompts, or one each."""

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace parameters by name; those not named keep their values."""
