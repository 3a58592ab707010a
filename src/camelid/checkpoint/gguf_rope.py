"""Llama 3's scaling of rotary frequencies from its result: GGUF files hold what each frequency is divided by, no more.

A blended divisor is 1 / ((1 − s)/F + s) with s = (O/w − L)/(H − L) for wavelength w, factor F, original context O and
the frequency factors L and H (see `camelid.model.rope.Llama3Rope`): linear in 1/w. A common factor of O, L and H
cancels, so L = 1 can be had. Two blended divisors then give H and O. With fewer there are many that give the same
divisors: a release's are taken where they do, and any others with a warning.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError, FormatError
from camelid.model.rope import Llama3Rope, RopeParameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from camelid.checkpoint.gguf_names import Scaling

_TOLERANCE: Final = 1e-4
"""Relative; the divisors are float32 results of a handful of operations."""
_SPREADS: Final = (4.0, 2.0, 1.5, 1.1, 1.01)
"""Ratios of the frequency factors to try: the releases' first; as it nears 1, nothing else is blended any more."""


def llama3_scaling(
    divisors: Tensor, rope_theta: float, head_dim: int, released: Sequence[Scaling], where: str
) -> dict[str, Any] | None:
    """A `rope_scaling` that gives exactly these divisors of the frequencies; None: they are all 1.

    Args:
        divisors: fp32 [head_dim / 2].
        rope_theta: base of the frequencies.
        head_dim: of a head.
        released: settings of releases, the likeliest first.
        where: names the tensor in messages.

    Raises:
        FormatError: they cannot be divisors of frequencies.
        ConfigError: no settings of this kind give them.
    """
    plain = RopeParameters(rope_theta=rope_theta).frequencies(head_dim)
    if divisors.shape != plain.shape or not bool((divisors >= 1).all()):
        raise FormatError("impossible divisors of rotary frequencies", where=where)
    if bool((divisors == 1).all()):
        return None
    turns = _Turns(plain, divisors, rope_theta, head_dim)
    if rope := turns.first_that_fits([*turns.solved(), *released]):
        return _settings(rope)
    if rope := turns.first_that_fits(turns.equivalent()):
        warnings.warn(
            f"{where} leaves open which context the model was first made for; {rope.original_max_position_embeddings} "
            f"positions, with frequency factors of {rope.low_freq_factor:g} and {rope.high_freq_factor:g}, give the "
            "same frequencies and are taken",
            UserWarning,
            stacklevel=2,
        )
        return _settings(rope)
    raise ConfigError("the file's divisors of rotary frequencies are not Llama 3's kind", where=where)


class _Turns:
    """Plain frequencies, what each is divided by, and the settings that would do so."""

    def __init__(self, plain: Tensor, divisors: Tensor, rope_theta: float, head_dim: int) -> None:
        self._plain, self._divisors = plain, divisors
        self._rope_theta, self._head_dim = rope_theta, head_dim
        self._factor = factor = round(float(divisors.max()), 4)
        wavelengths = 2 * math.pi / plain.double()
        smooth = (1 / divisors.double() - 1 / factor) / (1 - 1 / factor)
        kept, divided = divisors <= 1 + _TOLERANCE, divisors >= factor * (1 - _TOLERANCE)
        self._blended: list[tuple[float, float]] = list(
            zip(wavelengths[~kept & ~divided].tolist(), smooth[~kept & ~divided].tolist(), strict=True)
        )
        """Wavelength and s of each that is neither kept nor divided by the factor."""
        self._longest_kept = float(wavelengths[kept].max()) if bool(kept.any()) else 0.0
        self._shortest_divided = float(wavelengths[divided].min())

    def first_that_fits(self, scalings: Iterable[Scaling]) -> Llama3Rope | None:
        """The first settings that give the divisors."""
        import torch

        for low, high, original in scalings:
            try:
                rope = Llama3Rope(
                    rope_theta=self._rope_theta,
                    factor=self._factor,
                    low_freq_factor=low,
                    high_freq_factor=high,
                    original_max_position_embeddings=original,
                )
            except ConfigError:  # which no model can have
                continue
            divisors = self._plain / rope.frequencies(self._head_dim)
            if torch.allclose(divisors, self._divisors, rtol=_TOLERANCE, atol=0):
                return rope
        return None

    def solved(self) -> Iterator[Scaling]:
        """By the first and the last that are blended, rounded as people write settings and as they are."""
        if len(self._blended) < 2 or self._blended[0][0] == self._blended[-1][0]:
            return
        (first, upper), (last, lower) = self._blended[0], self._blended[-1]
        slope = (upper - lower) / (1 / first - 1 / last)
        offset = slope / first - upper
        if offset > 1e-6:  # or H would be larger than any
            high = 1 + 1 / offset
            rounded = round(high, 2)
            yield (1.0, rounded, round(slope * (rounded - 1)))
            yield _with_whole_context(high, slope * (high - 1))

    def equivalent(self) -> Iterator[Scaling]:
        """Where one is blended or none: settings between whose bounds no other wavelength lies."""
        for high in _SPREADS:
            if not self._blended:
                shortest = high * self._longest_kept
                context = math.sqrt(shortest * self._shortest_divided) or self._shortest_divided / 2
                yield (1.0, high, round(context))
                yield _with_whole_context(high, context)
            elif len(self._blended) == 1:
                ((wavelength, smooth),) = self._blended
                yield _with_whole_context(high, wavelength * (1 + smooth * (high - 1)))


def _with_whole_context(high: float, context: float) -> Scaling:
    """The same settings as L = 1, H and O, times what makes a whole number of O."""
    whole = max(round(context), 1)
    return whole / context, high * whole / context, whole


def _settings(rope: Llama3Rope) -> dict[str, Any]:
    scaling: dict[str, Any] = rope.to_hf()["rope_scaling"]
    return scaling
