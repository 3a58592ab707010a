"""Small corpora for the data tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.data.batch import Batch
from camelid.data.shards import TokenShards, write_shards

texts = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=25)


def shards_of(texts: Sequence[str], folder: Path, tokens_per_shard: int = 250) -> TokenShards:
    tokenizer = ByteTokenizer()
    write_shards(texts, tokenizer, folder, tokens_per_shard=tokens_per_shard, num_threads=1)
    return TokenShards(folder, tokenizer)


def stories(count: int, seed: int = 0) -> list[str]:
    """Texts of 5 to 60 letters, no two the same."""
    random = np.random.default_rng(seed)
    return [
        f"{i} " + "".join(map(chr, random.integers(97, 123, size=random.integers(5, 60)).tolist()))
        for i in range(count)
    ]


def assert_same(one: Batch, other: Batch) -> None:
    for name in ("ids_T", "targets_T", "weights_T", "positions_T"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.lengths, one.num_target_bytes, one.first_sample) == (
        other.lengths,
        other.num_target_bytes,
        other.first_sample,
    )


def sequences(batch: Batch) -> list[tuple[list[int], list[int], list[bool]]]:
    """Ids, targets and whether they count of each sequence; positions are checked on the way."""
    found = []
    start = 0
    for length in batch.lengths:
        stop = start + length
        assert batch.positions_T[start:stop].tolist() == list(range(length))
        found.append(
            (
                batch.ids_T[start:stop].tolist(),
                batch.targets_T[start:stop].tolist(),
                (batch.weights_T[start:stop] > 0).tolist(),
            )
        )
        start = stop
    assert start == len(batch.ids_T) == len(batch.targets_T) == len(batch.weights_T)
    return found
