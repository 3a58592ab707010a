from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import RecipeError
from camelid.plan import Workload
from camelid.plan.workload import mean_seen, sequence_lengths


@given(st.integers(1, 20), st.integers(1, 300), st.none() | st.floats(1, 1000))
def test_sequences_fill_rows_and_never_cross_them(rows: int, row_length: int, document_length: float | None) -> None:
    lengths = sequence_lengths(rows, row_length, document_length)
    assert sum(lengths) == rows * row_length
    assert min(lengths) >= 1
    assert set(range(row_length, rows * row_length + 1, row_length)) <= set(accumulate(lengths))


def test_documents_have_the_length_that_was_asked_for() -> None:
    lengths = sequence_lengths(1, 100_000, 250.0)
    assert sum(lengths) / len(lengths) == pytest.approx(250, rel=0.01)
    assert len(set(lengths)) > 1


def test_short_documents_see_less_than_their_row() -> None:
    assert mean_seen(sequence_lengths(4, 512, None)) == 512
    assert mean_seen(sequence_lengths(4, 512, 64.0)) < 128


def test_tokens_count_every_batch_of_every_step() -> None:
    assert Workload(steps=10, batch_size=4, sequence_length=8, accumulation=3).tokens == 10 * 3 * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": -1}, "batch_size"),
        ({"target_share": 0.0}, "target_share"),
        ({"price_per_hour": -1.0}, "price_per_hour"),
        ({"num_devices": 0}, "num_devices"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"dtype": "float16"}, "unknown dtype"),
    ],
)
def test_an_impossible_workload_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Workload(**{"steps": 1, "batch_size": 1, "sequence_length": 1, **change})
