"""What a run is to do, whatever model it does it with. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from camelid.base.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

OPTIMIZERS = ("adamw", "muon")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The size of a training run.

    Raises:
        RecipeError: a count below 1, a share outside (0, 1], or an optimizer or dtype that is not known.
    """

    steps: int
    """Updates."""
    batch_size: int
    """Rows of one batch, of all devices together."""
    sequence_length: int
    """Tokens of a row."""
    accumulation: int = 1
    """Batches of one update."""
    optimizer: str = "adamw"
    """One of `OPTIMIZERS`; "muon" takes the matrices of the blocks and leaves the rest to AdamW."""
    activation_checkpointing: bool = False
    dtype: str = "auto"
    """Of the matrix products, one of `DTYPES`; weights, gradients and optimizer state are float32. "auto": bfloat16 on
    an accelerator, float32 on a CPU."""
    device: str = "auto"
    """A device that is here ("cpu", "cuda", "auto") or a name of `camelid.plan.devices.DEVICES`."""
    num_devices: int | None = None
    """Of a device that is not here; None: as few as have the memory. Ignored for one that is here."""
    document_length: float | None = None
    """Tokens of a typical document: attention stays inside it. None: a row is one document."""
    target_share: float = 1.0
    """Share of the tokens that the loss is taken at; in fine-tuning the answers' share."""
    chunk_tokens: int = 256
    """Tokens whose logits the trainer holds at once."""
    num_checkpoints: int = 3
    """Checkpoints on disk at once: those that are kept and the one being written."""
    price_per_hour: float | None = None
    """Of one device, in any currency."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sequence_length", "accumulation", "chunk_tokens", "num_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        _require(
            self.num_devices is None or self.num_devices >= 1, "num_devices", self.num_devices, "must be 1 or more"
        )
        _require(
            self.document_length is None or self.document_length >= 1,
            "document_length",
            self.document_length,
            "must be 1 or more",
        )
        _require(0 < self.target_share <= 1, "target_share", self.target_share, "must be above 0 and at most 1")
        _require(
            self.price_per_hour is None or self.price_per_hour >= 0,
            "price_per_hour",
            self.price_per_hour,
            "must not be negative",
        )
        for name, known in (("optimizer", OPTIMIZERS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"unknown {name} '{getattr(self, name)}'", where=name, hint=did_you_mean(getattr(self, name), known)
                )

    @property
    def batch_tokens(self) -> int:
        """Tokens that go through the model at once."""
        return self.batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.accumulation * self.batch_tokens


def sequence_lengths(num_rows: int, row_length: int, document_length: float | None) -> tuple[int, ...]:
    """Tokens of each sequence of a packed batch; they sum to `num_rows · row_length`.

    Documents end to end are cut into rows, as the loader cuts them, and a document that two rows share is a sequence in
    each. Their lengths are 2/3 and 4/3 of the typical one in turn, so that few are alike, as in real data.
    """
    num_tokens = num_rows * row_length
    edges = set(range(0, num_tokens + 1, row_length))
    if document_length is not None:
        place, share = 0.0, 2 / 3
        while (place := place + max(1.0, share * document_length)) < num_tokens:
            edges.add(round(place))
            share = 2 - share
    return tuple(after - before for before, after in pairwise(sorted(edges)))


def mean_seen(lengths: Sequence[int]) -> float:
    """Length of the sequence that a token is in, averaged over tokens; 0 without any."""
    return sum(length**2 for length in lengths) / max(sum(lengths), 1)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{name} {rule}, not {value!r}", where=name)
