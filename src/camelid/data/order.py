"""The order of samples: a pure function of the seed and the sample's number, computed one element at a time.

An epoch's order is a permutation of its rows that is never written down: a Feistel network permutes the numbers of the
next power of four, and an image outside the range goes through it again until it falls inside (cycle walking; Black and
Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002, section 3). So any sample of any epoch is had in constant
time and no memory, in any process.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np

from camelid.base.errors import RecipeError
from camelid.data.ngrams import mix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_ROUNDS: Final = 8
"""Four make a pseudo-random permutation of a large range (Luby and Rackoff, 1988); on a few bits more are needed."""


def rows_of_samples(samples_N: NDArray[np.int64], num_rows: int, seed: int, name: str = "") -> NDArray[np.int64]:
    """The row that each sample shows; every `num_rows` samples from 0 are an epoch, which shows each row once.

    Args:
        samples_N: numbers of samples, from 0, in any order.
        num_rows: rows of an epoch.
        seed: another seed, another order.
        name: tells apart the orders of several data sets under one seed.
    """
    epochs_N, within_N = np.divmod(samples_N, num_rows)
    rows_N = np.empty_like(samples_N)
    for epoch in np.unique(epochs_N):
        chosen_N = epochs_N == epoch
        rows_N[chosen_N] = permuted(within_N[chosen_N], num_rows, f"{seed}/{name}/{epoch}")
    return rows_N


def permuted(index_N: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """The images of some indices under a permutation of 0 … size - 1 that the key names."""
    assert size > 0
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    image_N = _feistel(index_N.astype(np.uint64), half_bits, keys)
    while (outside_N := image_N >= size).any():
        image_N[outside_N] = _feistel(image_N[outside_N], half_bits, keys)
    return image_N.astype(np.int64)


def samples_of_batch(number: int, batch_size: int, rank: int, world: int) -> NDArray[np.int64]:
    """The numbers of the samples in one rank's part of a batch; the ranks' parts in turn are the whole batch.

    Raises:
        RecipeError: the batch does not divide among the ranks.
    """
    assert number >= 0
    assert 0 <= rank < world
    if batch_size % world:
        raise RecipeError(
            f"a batch of {batch_size} sequences does not divide among {world} ranks",
            where="batch_size",
            hint=f"the nearest that does is {max(1, round(batch_size / world)) * world}",
        )
    share = batch_size // world
    first = number * batch_size + rank * share
    return np.arange(first, first + share, dtype=np.int64)


def _feistel(value_N: NDArray[np.uint64], half_bits: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left_N, right_N = value_N >> bits, value_N & mask
    for key in keys:
        left_N, right_N = right_N, left_N ^ (mix64(right_N ^ np.uint64(key)) & mask)
    return (left_N << bits) | right_N


@lru_cache(maxsize=1024)
def _round_keys(key: str) -> tuple[int, ...]:
    digest = blake2b(key.encode(), digest_size=8 * NUM_ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
