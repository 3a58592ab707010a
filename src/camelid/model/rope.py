"""What a config says of rotary positions, and the frequencies that follow (Su et al. 2021, arXiv 2104.09864, §3.2).

Position p turns the i-th pair of a head's D dimensions by the angle p · f_i; `camelid.model.rotary` does the turning.
Importing this file needs no torch, so that shapes can be listed quickly.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from camelid.base.errors import ConfigError, did_you_mean
from camelid.model.config import require_count, require_flag, require_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """The plain kind: f_i = theta^(−2i/D). The other kinds derive from it and add their own settings.

    Raises:
        ConfigError: a value outside its range.
    """

    rope_type: ClassVar[str] = "default"

    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        require_number("rope_theta", self.rope_theta, above=1, at_most=1e15)

    def frequencies(self, head_dim: int) -> Tensor:
        """f_i in radians per position: fp32 [D/2] on the CPU.

        The arithmetic is fp32 step by step as in the reference code: an error of one unit in the last place is 0.01
        radians at position 100,000.
        """
        return 1.0 / self._inverse_frequencies(head_dim)

    def _inverse_frequencies(self, head_dim: int) -> Tensor:
        """theta^(2i/D): positions per radian."""
        import torch

        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        return torch.pow(self.rope_theta, exponents)

    @property
    def amplitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return 1.0

    def to_hf(self) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling`, the spelling that every release of the ecosystem reads."""
        settings = {name: value for name, value in asdict(self).items() if value is not None}
        theta = settings.pop("rope_theta")
        scaling = None if self.rope_type == "default" else {"rope_type": self.rope_type, **settings}
        return {"rope_theta": theta, "rope_scaling": scaling}


@dataclass(frozen=True, kw_only=True)
class LinearRope(RopeParameters):
    """Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595, §2.3)."""

    rope_type: ClassVar[str] = "linear"

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("factor", self.factor, above=0, at_most=1e6)

    def frequencies(self, head_dim: int) -> Tensor:
        """f_i / factor."""
        return super().frequencies(head_dim) / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(RopeParameters):
    """Llama 3.1's: slow turns are divided by the factor, fast ones kept, those between blended.

    With both frequency factors equal, as in Llama 4 Scout, nothing is between.
    """

    rope_type: ClassVar[str] = "llama3"

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            require_number(name, getattr(self, name), above=0, at_most=1e6)
        require_count("original_max_position_embeddings", self.original_max_position_embeddings)
        if self.high_freq_factor < self.low_freq_factor:
            raise ConfigError(
                f"high_freq_factor ({self.high_freq_factor}) must not be below low_freq_factor "
                f"({self.low_freq_factor})",
                where="rope_scaling",
            )

    def frequencies(self, head_dim: int) -> Tensor:
        """With wavelength w = 2π/f and original context O.

        f where w < O/high; f/factor where w > O/low; else (1 − s)·f/factor + s·f with
        s = (O/w − low)/(high − low). Source: llama-models, models/llama3/model.py, apply_scaling.
        """
        import torch

        plain = super().frequencies(head_dim)
        wavelengths = 2 * math.pi / plain
        original, low, high = self.original_max_position_embeddings, self.low_freq_factor, self.high_freq_factor
        slow, fast = wavelengths > original / low, wavelengths < original / high
        if low == high:
            return torch.where(slow, plain / self.factor, plain)
        smooth = (original / wavelengths - low) / (high - low)
        blended = (1 - smooth) * plain / self.factor + smooth * plain
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, blended))


@dataclass(frozen=True, kw_only=True)
class YarnRope(RopeParameters):
    """YaRN (Peng et al. 2023, arXiv 2309.00071, §3): a ramp between divided and kept turns, and a temperature."""

    rope_type: ClassVar[str] = "yarn"

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    """None: 0.1·ln(factor) + 1 (§3.4), or the ratio of that with mscale and with mscale_all_dim as slopes."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round the ramp's ends outwards to whole dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("original_max_position_embeddings", self.original_max_position_embeddings)
        for name in ("factor", "beta_fast", "beta_slow"):
            require_number(name, getattr(self, name), above=1e-6, at_most=1e6)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if (value := getattr(self, name)) is not None:
                require_number(name, value, above=0, at_most=1e6)
        require_flag("truncate", self.truncate)
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"beta_fast ({self.beta_fast}) must not be below beta_slow ({self.beta_slow})", where="rope_scaling"
            )

    def frequencies(self, head_dim: int) -> Tensor:
        """γ·f + (1 − γ)·f/factor; γ falls from 1 to 0 between beta_fast and beta_slow turns in the original context."""
        import torch

        inverse = self._inverse_frequencies(head_dim)
        first, last = (self._pair_turning(turns, head_dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        width = (last - first) or 0.001
        kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - first) / width).clamp(0, 1)
        return 1.0 / (self.factor * inverse) * (1 - kept) + 1.0 / inverse * kept

    def _pair_turning(self, turns: float, head_dim: int) -> float:
        """The (fractional) pair of dimensions that makes this many full turns in the original context."""
        per_turn = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(per_turn) / (2 * math.log(self.rope_theta))

    @property
    def amplitude(self) -> float:
        """`attention_factor`; cosine and sine enter queries and keys, so scores get its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, slope: float) -> float:
        return 0.1 * slope * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


ROPE_TYPES: dict[str, type[RopeParameters]] = {
    kind.rope_type: kind for kind in (RopeParameters, LinearRope, Llama3Rope, YarnRope)
}
"""The kinds there are. "dynamic" and "longrope" are refused: their angles change with the longest sequence at hand,
which makes cached keys wrong and a reply depend on its neighbours in the batch."""

HARMLESS_KEYS = {"finetuned"}
"""Keys of a rope table that say how a model was made."""

BESIDE_THE_TABLE = {
    "rope_theta": ("rope_theta",),
    "original_max_position_embeddings": ("original_max_position_embeddings", "max_position_embeddings"),
}
"""Key of a rope table → where its value lies if not in the table."""


def read_rope(settings: Mapping[str, Any]) -> RopeParameters:
    """The rotary settings of a `config.json`: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    A theta inside the table wins over one beside it. A type that is not known is an error, since every type is
    different mathematics; so is an unknown key of the table.

    Raises:
        ConfigError: an unknown type or key, a missing key, a value outside its range, or two tables that disagree.
    """
    tables = [settings[name] for name in ("rope_scaling", "rope_parameters") if settings.get(name)]
    if not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"rope settings must be a table, not {tables!r}", where="rope_scaling")
    readings = [_read_table(table, settings) for table in tables or [{}]]
    if readings[0] != readings[-1]:
        raise ConfigError("rope_scaling and rope_parameters disagree", where="rope_parameters")
    return readings[0]


def _read_table(table: Mapping[str, Any], settings: Mapping[str, Any]) -> RopeParameters:
    values = {name: value for name, value in table.items() if value is not None and name not in HARMLESS_KEYS}
    newer, older = values.pop("rope_type", None), values.pop("type", None)
    rope_type = newer or older or "default"
    if (older or rope_type) != rope_type:
        raise ConfigError(f"rope_type {newer!r} and type {older!r} disagree", where="rope_scaling")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise ConfigError(
            f"unknown rope type {rope_type!r}", where="rope_scaling", hint=did_you_mean(str(rope_type), ROPE_TYPES)
        )
    if values.pop("partial_rotary_factor", 1) != 1:
        raise ConfigError("only whole heads are rotated: partial_rotary_factor must be 1", where="rope_parameters")
    kind = ROPE_TYPES[rope_type]
    known = {field.name: field for field in fields(kind)}
    for name, beside in BESIDE_THE_TABLE.items():
        values.setdefault(name, next((settings[key] for key in beside if settings.get(key) is not None), None))
        if name not in known or values[name] is None:
            del values[name]
    for name in values.keys() - known.keys():
        raise ConfigError(
            f"unknown key '{name}' for rope type '{rope_type}'", where="rope_scaling", hint=did_you_mean(name, known)
        )
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise ConfigError(f"rope type '{rope_type}' needs '{name}'", where="rope_scaling")
    return kind(**values)
