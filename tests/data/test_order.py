from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import RecipeError
from camelid.data.order import permuted, rows_of_samples, samples_of_batch


@given(size=st.integers(1, 3000), key=st.text(max_size=5))
def test_every_index_has_one_image_and_every_image_one_index(size: int, key: str) -> None:
    images = permuted(np.arange(size), size, key)

    assert sorted(images.tolist()) == list(range(size))


@given(size=st.integers(1, 1 << 50), data=st.data())
def test_one_image_is_had_without_the_others(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))

    together = permuted(np.array(indices), size, "key")
    alone = [permuted(np.array([index]), size, "key").item() for index in indices]

    assert together.tolist() == alone
    assert all(0 <= image < size for image in alone)


def test_the_order_is_the_same_on_every_machine_and_day() -> None:
    assert permuted(np.arange(10), 10, "0//0").tolist() == [5, 8, 7, 6, 9, 2, 1, 3, 0, 4]


def test_an_element_goes_everywhere_about_equally_often() -> None:
    counts = np.zeros((10, 10))
    for seed in range(2000):
        counts[np.arange(10), permuted(np.arange(10), 10, str(seed))] += 1

    # each is binomial with mean 200 and standard deviation 13.4; six of those happen once in 10 ** 9
    assert np.abs(counts - 200).max() < 6 * 13.4


def test_neighbours_do_not_stay_neighbours() -> None:
    images = permuted(np.arange(100_000), 100_000, "a")

    assert np.mean(np.abs(np.diff(images)) == 1) < 1e-3


@given(num_rows=st.integers(1, 50), seed=st.integers(0, 9), num_epochs=st.integers(1, 4))
def test_every_epoch_shows_every_row_once(num_rows: int, seed: int, num_epochs: int) -> None:
    rows = rows_of_samples(np.arange(num_rows * num_epochs), num_rows, seed)

    for epoch in rows.reshape(num_epochs, num_rows):
        assert sorted(epoch.tolist()) == list(range(num_rows))


def test_epochs_seeds_and_data_sets_have_orders_of_their_own() -> None:
    two_epochs = rows_of_samples(np.arange(200), 100, seed=0)
    orders = {
        tuple(two_epochs[:100].tolist()),
        tuple(two_epochs[100:].tolist()),
        tuple(rows_of_samples(np.arange(100), 100, seed=1).tolist()),
        tuple(rows_of_samples(np.arange(100), 100, seed=0, name="books").tolist()),
    }

    assert len(orders) == 4


@given(number=st.integers(0, 10**9), share=st.integers(1, 5), world=st.integers(1, 6))
def test_the_ranks_parts_in_turn_are_the_batch(number: int, share: int, world: int) -> None:
    batch_size = share * world

    parts = [samples_of_batch(number, batch_size, rank, world).tolist() for rank in range(world)]

    assert list(chain.from_iterable(parts)) == list(range(number * batch_size, (number + 1) * batch_size))


def test_a_batch_that_does_not_divide_among_ranks_is_refused() -> None:
    with pytest.raises(RecipeError, match="10 sequences does not divide among 4 ranks") as caught:
        samples_of_batch(0, 10, 0, 4)

    assert caught.value.hint == "the nearest that does is 8"
