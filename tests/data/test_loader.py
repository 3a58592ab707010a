from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from corpora import assert_same, sequences, shards_of, stories, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import RecipeError
from camelid.data.loader import PretrainBatches
from camelid.data.mixture import Mixture, MixturePart
from camelid.data.shards import TokenShards, write_shards
from camelid.tokenizer import load_tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return shards_of(stories(60), tmp_path_factory.mktemp("shards"))


@settings(max_examples=30, deadline=None)
@given(texts=texts, sequence_length=st.integers(1, 70), seed=st.integers(0, 99), epoch=st.integers(0, 2))
def test_an_epoch_has_every_token_once_and_every_pair_within_a_document_as_a_target(
    texts: list[str], sequence_length: int, seed: int, epoch: int
) -> None:
    numbered = [f"{i}{text}" for i, text in enumerate(texts)]
    with TemporaryDirectory() as folder:
        shards = shards_of(numbered, Path(folder))
        batches = PretrainBatches(shards, sequence_length=sequence_length, batch_size=1, seed=seed)
        num_rows = batches.part_rows["corpus"]

        found = [part for row in range(num_rows) for part in sequences(batches.batch(epoch * num_rows + row))]

        documents = [shards.document(i).tolist() for i in range(len(shards))]
    padding = -shards.num_tokens % sequence_length
    inputs = Counter(token for ids, _, _ in found for token in ids)
    assert inputs - Counter({256: padding}) == Counter(token for document in documents for token in document)
    learned = Counter(
        (token, target)
        for ids, targets, counts in found
        for token, target, counts_here in zip(ids, targets, counts, strict=True)
        if counts_here
    )
    assert learned == Counter(pair for document in documents for pair in pairwise(document))


@settings(max_examples=30, deadline=None)
@given(texts=texts, sequence_length=st.integers(1, 70))
def test_no_sequence_and_no_target_crosses_from_one_document_to_the_next(
    texts: list[str], sequence_length: int
) -> None:
    numbered = [f"{i}{text}" for i, text in enumerate(texts)]
    with TemporaryDirectory() as folder:
        shards = shards_of(numbered, Path(folder))
        batches = PretrainBatches(shards, sequence_length=sequence_length, batch_size=2, seed=0)

        found = [part for batch in batches.in_order() for part in sequences(batch)]

        documents = [shards.document(i).tolist() for i in range(len(shards))]
    inside = {tuple(d[i:j]) for d in documents for i in range(len(d)) for j in range(i + 1, len(d) + 1)}
    for ids, targets, counts in found:
        if any(counts):
            assert tuple(ids) in inside
            assert counts[:-1] == [True] * (len(counts) - 1)
            assert targets[:-1] == ids[1:]
            assert not counts[-1] or (*ids, targets[-1]) in inside


@settings(max_examples=30, deadline=None)
@given(texts=texts, sequence_length=st.integers(1, 70))
def test_the_bytes_of_an_epochs_targets_are_the_bytes_of_the_texts(texts: list[str], sequence_length: int) -> None:
    with TemporaryDirectory() as folder:
        shards = shards_of(texts, Path(folder))
        batches = PretrainBatches(shards, sequence_length=sequence_length, batch_size=3, seed=0)

        assert sum(batch.num_target_bytes for batch in batches.in_order()) == shards.num_bytes


def test_bytes_are_exact_with_a_sentencepiece_vocabulary_too(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "llama2" / "tokenizer.model")
    corpus = ["The llama is a camelid.", "  two spaces", "naïve 日本語 🦙\n\ttabs", "x"]
    write_shards(corpus, tokenizer, tmp_path)
    batches = PretrainBatches(TokenShards(tmp_path, tokenizer), sequence_length=7, batch_size=2, seed=0)

    num_bytes = sum(batch.num_target_bytes for batch in batches.in_order())

    assert num_bytes == sum(len(text.encode()) for text in corpus)


def test_without_a_begin_token_no_target_is_a_first_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / "llama2" / "tokenizer.model")
    tokenizer.special = replace(tokenizer.special, bos=None)
    write_shards(["a b"], tokenizer, tmp_path)
    batches = PretrainBatches(TokenShards(tmp_path, tokenizer), sequence_length=3, batch_size=1, seed=0)

    assert batches.batch(0).num_target_bytes == len(" b")


@given(size=st.integers(1, 7), world=st.integers(1, 5), number=st.integers(0, 1000))
@settings(deadline=None)
def test_the_order_depends_on_neither_batch_size_nor_ranks(
    shards: TokenShards, size: int, world: int, number: int
) -> None:
    alone = PretrainBatches(shards, sequence_length=16, batch_size=1, seed=3)
    together = PretrainBatches(shards, sequence_length=16, batch_size=size * world, seed=3)

    parts = [together.batch(number, rank, world) for rank in range(world)]

    assert [part.first_sample for part in parts] == [(number * world + rank) * size for rank in range(world)]
    rows = np.concatenate([part.ids_T for part in parts]).reshape(-1, 16)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row, alone.batch(number * size * world + i).ids_T)


@given(number=st.integers(0, 10**12))
@settings(deadline=None)
def test_any_batch_is_had_at_once_and_again(shards: TokenShards, number: int) -> None:
    one, other = (PretrainBatches(shards, sequence_length=16, batch_size=4, seed=3) for _ in range(2))
    one.batch(0)

    assert_same(one.batch(number), other.batch(number))


def test_going_on_from_any_batch_equals_never_having_stopped(shards: TokenShards) -> None:
    continuous = PretrainBatches(shards, sequence_length=16, batch_size=4, seed=3)
    expected = [continuous.batch(number) for number in range(60)]

    for stop in (1, 17, 42):
        resumed = PretrainBatches(shards, sequence_length=16, batch_size=4, seed=3)
        for number in range(stop, 60):
            assert_same(resumed.batch(number), expected[number])


def test_the_shards_sizes_do_not_change_the_batches(tmp_path: Path) -> None:
    one, many = (
        PretrainBatches(shards_of(stories(40), tmp_path / str(size), size), sequence_length=16, batch_size=4, seed=0)
        for size in (10**6, 300)
    )

    for number in range(30):
        assert_same(one.batch(number), many.batch(number))


def test_every_batch_has_the_same_shape(tmp_path: Path) -> None:
    batches = PretrainBatches(shards_of(["a", "bc"], tmp_path), sequence_length=16, batch_size=3, seed=0)

    batch = batches.batch(0)

    assert batch.ids_T.shape == (48,)
    assert batch.lengths == (3, 4, 9) * 3
    assert batch.weights_T[:16].tolist() == [1, 1, 0, 1, 1, 1, 0] + [0] * 9
    assert batch.num_target_bytes == 9


def test_a_mixture_shows_each_part_its_share(tmp_path: Path) -> None:
    parts = {
        "letters": shards_of(["a" * 158], tmp_path / "letters"),
        "digits": shards_of(["0" * 38], tmp_path / "digits"),
    }
    mixture = Mixture([MixturePart("letters", parts["letters"], 1), MixturePart("digits", parts["digits"], 3)])
    batches = PretrainBatches(mixture, sequence_length=8, batch_size=4, seed=0)

    kinds: Counter[str] = Counter()
    for number in range(100):
        for row in batches.batch(number).ids_T.reshape(4, 8):
            kinds["digits" if ord("0") in row else "letters"] += 1

    assert kinds == {"letters": 100, "digits": 300}
    assert batches.epochs(100) == {"letters": 100 / 20, "digits": 300 / 5}


def test_each_part_of_a_mixture_goes_through_epochs_of_its_own(tmp_path: Path) -> None:
    small = shards_of(["abcdefghijklmnopqrstuvwxyz"], tmp_path / "small")
    large = shards_of(["0123456789" * 30], tmp_path / "large")
    mixture = Mixture([MixturePart("small", small, 1), MixturePart("large", large, 1)])
    batches = PretrainBatches(mixture, sequence_length=7, batch_size=2, seed=0)

    rows = [batches.batch(number).ids_T.reshape(2, 7) for number in range(4)]

    letters = [token for pair in rows for row in pair for token in row.tolist() if 97 <= token <= 122]
    assert sorted(letters) == list(range(97, 123)), "four samples of the small part are one epoch of it"


def test_the_fingerprint_follows_data_and_settings(shards: TokenShards, tmp_path: Path) -> None:
    base = {"sequence_length": 16, "batch_size": 4, "seed": 0}
    fingerprints = [PretrainBatches(shards, **base).fingerprint]
    for change in ({"sequence_length": 8}, {"batch_size": 2}, {"seed": 1}):
        fingerprints.append(PretrainBatches(shards, **(base | change)).fingerprint)
    fingerprints.append(PretrainBatches(shards_of(stories(60, seed=1), tmp_path), **base).fingerprint)

    assert len(set(fingerprints)) == 5
    assert PretrainBatches(shards, **base).fingerprint == fingerprints[0]


@pytest.mark.parametrize("name", ["sequence_length", "batch_size"])
def test_impossible_sizes_are_refused(shards: TokenShards, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        PretrainBatches(shards, **({"sequence_length": 8, "batch_size": 8, "seed": 0} | {name: 0}))

    assert caught.value.where == name
