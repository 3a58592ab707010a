from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpora import shards_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import RecipeError, TokenizerError
from camelid.data.mixture import PERIOD, Mixture, MixturePart
from camelid.data.shards import TokenShards, write_shards

weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return shards_of(["one", "two"], tmp_path_factory.mktemp("shards"))


def mixture_of(shards: TokenShards, weights: list[float]) -> Mixture:
    return Mixture([MixturePart(str(i), shards, weight) for i, weight in enumerate(weights)])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=weights)
def test_long_run_shares_are_the_weights(shards: TokenShards, weights: list[float]) -> None:
    mixture = mixture_of(shards, weights)

    part_N, _ = mixture.choose(np.arange(3 * PERIOD))

    counts = np.bincount(part_N, minlength=len(weights))
    np.testing.assert_allclose(counts / (3 * PERIOD), np.array(weights) / sum(weights), atol=1 / PERIOD)
    assert counts.tolist() == [round(3 * PERIOD * share) for share in mixture.shares.values()]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=weights, start=st.integers(0, 10**12), length=st.integers(1, 500))
def test_every_stretch_of_samples_has_about_the_shares(
    shards: TokenShards, weights: list[float], start: int, length: int
) -> None:
    mixture = mixture_of(shards, weights)

    part_N, _ = mixture.choose(np.arange(start, start + length))

    counts = np.bincount(part_N, minlength=len(weights))
    expected = length * np.array(weights) / sum(weights)
    assert np.abs(counts - expected).max() <= len(weights)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=weights)
def test_a_part_gives_its_samples_in_turn(shards: TokenShards, weights: list[float]) -> None:
    part_N, within_N = mixture_of(shards, weights).choose(np.arange(2 * PERIOD + 77))

    for part in range(len(weights)):
        mine = within_N[part_N == part]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


@given(samples=st.lists(st.integers(0, 10**15), min_size=1, max_size=10))
def test_a_sample_is_chosen_without_the_others(shards: TokenShards, samples: list[int]) -> None:
    mixture = mixture_of(shards, [5, 2, 1])

    together = np.stack(mixture.choose(np.array(samples))).T.tolist()
    alone = [[int(value.item()) for value in mixture.choose(np.array([sample]))] for sample in samples]

    assert together == alone


@pytest.mark.parametrize("weight", [0, 0.0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_above_zero_is_refused(shards: TokenShards, weight: float) -> None:
    with pytest.raises(RecipeError, match="a weight is a number above 0") as caught:
        Mixture([MixturePart("books", shards, 1), MixturePart("web", shards, weight)])

    assert caught.value.where == "mixture.web.weight"


def test_a_weight_of_zero_gets_a_hint(shards: TokenShards) -> None:
    with pytest.raises(RecipeError, match="leave the part out"):
        Mixture([MixturePart("web", shards, 0)])


def test_a_weight_too_small_to_ever_be_seen_is_refused(shards: TokenShards) -> None:
    with pytest.raises(RecipeError, match="less than 1 in 100000"):
        Mixture([MixturePart("books", shards, 1), MixturePart("web", shards, 1e-9)])


def test_no_parts_and_two_of_one_name_are_refused(shards: TokenShards) -> None:
    with pytest.raises(RecipeError, match="no parts"):
        Mixture([])
    with pytest.raises(RecipeError, match="two parts of the mixture are named 'a'"):
        Mixture([MixturePart("a", shards, 1), MixturePart("a", shards, 2)])


def test_parts_of_different_vocabularies_are_refused(shards: TokenShards, tmp_path: Path) -> None:
    class Larger(ByteTokenizer):
        vocab_size = 260

        def token_bytes(self, token_id: int) -> bytes:
            return b"new" if token_id == 259 else super().token_bytes(token_id)

    write_shards(["a"], Larger(), tmp_path)

    with pytest.raises(TokenizerError, match="another vocabulary"):
        Mixture([MixturePart("old", shards, 1), MixturePart("new", TokenShards(tmp_path, Larger()), 1)])
