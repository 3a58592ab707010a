"""Weighted mixtures of corpora: which corpus each sample comes from, as a function of the sample's number alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from camelid.base.errors import RecipeError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from camelid.data.shards import TokenShards

PERIOD: Final = 100_000
"""Samples after which the choice of corpora repeats; shares are held to one part in so many."""


@dataclass(frozen=True)
class MixturePart:
    """One corpus of a mixture."""

    name: str
    shards: TokenShards
    weight: float
    """Its share of all tokens seen, relative to the other parts' weights and whatever its own size."""


class Mixture:
    """Several corpora, each with its share of the samples.

        Mixture([MixturePart("books", books, 3), MixturePart("web", web, 1)])   # three samples in four are of books

    In every stretch of samples the parts come as evenly as their weights allow, so that batches of any size see nearly
    the same mixture.

    Raises:
        RecipeError: no parts, two of one name, or a weight that is not above 0.
        TokenizerError: the parts were tokenized with different vocabularies.
    """

    def __init__(self, parts: Sequence[MixturePart]) -> None:
        self.parts = tuple(parts)
        _check(self.parts)
        self.counts = _counts(self.parts)
        """Samples of each part in every `PERIOD` samples."""
        self._part_P, self._rank_P = _spread(self.counts)

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of the samples, exactly."""
        return {part.name: count / PERIOD for part, count in zip(self.parts, self.counts, strict=True)}

    @property
    def fingerprint(self) -> str:
        """A hash of the parts' content, names and shares."""
        content = [(p.name, p.shards.fingerprint, count) for p, count in zip(self.parts, self.counts, strict=True)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def choose(self, samples_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each sample, which part it comes from, and how many earlier samples come from that part."""
        periods_N, within_N = np.divmod(samples_N, PERIOD)
        part_N = self._part_P[within_N]
        return part_N, periods_N * np.array(self.counts)[part_N] + self._rank_P[within_N]


def _check(parts: tuple[MixturePart, ...]) -> None:
    if not parts:
        raise RecipeError("the mixture has no parts", where="mixture")
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1:
            raise RecipeError(f"two parts of the mixture are named '{part.name}'", where="mixture")
        if not (part.weight > 0 and math.isfinite(part.weight)):
            raise RecipeError(
                f"a weight is a number above 0, not {part.weight}",
                where=f"mixture.{part.name}.weight",
                hint="leave the part out if nothing of it should be seen" if part.weight == 0 else None,
            )
        if part.shards.vocabulary.fingerprint != parts[0].shards.vocabulary.fingerprint:
            raise TokenizerError(
                f"'{part.name}' was tokenized with another vocabulary than '{names[0]}'", where=part.shards.folder
            )


def _counts(parts: tuple[MixturePart, ...]) -> tuple[int, ...]:
    """How many of `PERIOD` samples each part gets: the largest remainders are rounded up."""
    total = math.fsum(part.weight for part in parts)
    exact = [part.weight / total * PERIOD for part in parts]
    counts = [math.floor(quota) for quota in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: PERIOD - sum(counts)]:
        counts[i] += 1
    for part, count in zip(parts, counts, strict=True):
        if count == 0:
            raise RecipeError(
                f"the weight {part.weight} is a share of less than 1 in {PERIOD} samples",
                where=f"mixture.{part.name}.weight",
                hint="raise it, or leave the part out",
            )
    return tuple(counts)


def _spread(counts: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A period's samples: the part of each, and its rank among that part's.

    A part that comes c times is due at (k + 1/2) / c for k = 0 … c - 1; samples go to parts in the order of due times.
    """
    part_P = np.repeat(np.arange(len(counts)), counts)
    rank_P = np.concatenate([np.arange(count) for count in counts])
    due_P = (rank_P + 0.5) / np.repeat(counts, counts)
    order_P = np.lexsort((part_P, due_P))
    return part_P[order_P], rank_P[order_P]
