"""The n-gram model: the paper's formulas, a distribution for every history, and a baseline worth its name."""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from camelid.evaluate.ngram import FALLBACK_DISCOUNTS, KneserNey, estimate_discounts
from camelid.tokenizer.train import train_tokenizer

ALICE = Path(__file__).parent.parent / "fixtures" / "books" / "alice.txt.gz"
VOCAB = 6
BOS = 0

corpora = st.lists(
    st.lists(st.integers(0, VOCAB - 1), max_size=12).map(lambda ids: [BOS, *ids]), min_size=1, max_size=12
)
histories = st.lists(st.integers(0, VOCAB - 1), max_size=6).map(lambda ids: [BOS, *ids])


def flat(documents: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(document) for document in documents])
    return np.concatenate([np.array(document, dtype=np.int64) for document in documents]), np.cumsum(lengths) - lengths


def fitted(documents: list[list[int]], order: int, vocab_size: int = VOCAB) -> KneserNey:
    return KneserNey(*flat(documents), vocab_size=vocab_size, order=order)


class Reference:
    """The formulas word for word: dictionaries of tuples, one probability at a time."""

    def __init__(self, documents: list[list[int]], order: int, vocab_size: int = VOCAB) -> None:
        self.order = order
        self.vocab_size = vocab_size
        self.counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        at_start: Counter[tuple[int, ...]] = Counter()
        plain: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            for end in range(1, len(document)):
                for k in range(1, order + 1):
                    start = end - k + 1
                    if start < 0:
                        continue
                    ngram = tuple(document[start : end + 1])
                    plain[ngram] += 1
                    if start > 0:
                        before[ngram].add(document[start - 1])
                    else:
                        at_start[ngram] += 1
        for ngram, count in plain.items():
            k = len(ngram)
            self.counts[k][ngram] = count if k == order else len(before[ngram]) + at_start[ngram]
        self.discounts = [
            estimate_discounts(np.array([sum(c == n for c in self.counts[k].values()) for n in range(1, 5)]))
            for k in range(order + 1)
        ]

    def prob(self, history: tuple[int, ...], token: int) -> float:
        history = history[max(0, len(history) - self.order + 1) :]
        lower = self.prob(history[1:], token) if history else 1 / self.vocab_size
        k = len(history) + 1
        after = {ngram[-1]: count for ngram, count in self.counts[k].items() if ngram[:-1] == history}
        if not after:
            return lower
        discount = (0.0, *self.discounts[k])
        total, count = sum(after.values()), after.get(token, 0)
        freed = sum(discount[min(c, 3)] for c in after.values())
        return (count - discount[min(count, 3)] + freed * lower) / total


@settings(max_examples=60, deadline=None)
@given(corpora, histories, st.integers(1, 5))
def test_it_is_the_papers_formulas(documents: list[list[int]], history: list[int], order: int) -> None:
    model, reference = fitted(documents, order), Reference(documents, order)
    probs = model.probs(np.array(history))
    expected = [reference.prob(tuple(history), token) for token in range(VOCAB)]
    np.testing.assert_allclose(probs, expected, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(corpora, histories, st.integers(1, 5))
def test_the_probabilities_after_any_history_sum_to_one(
    documents: list[list[int]], history: list[int], order: int
) -> None:
    probs = fitted(documents, order).probs(np.array(history))
    assert probs.min() > 0
    assert math.isclose(probs.sum(), 1, rel_tol=1e-12)


@given(corpora, corpora)
def test_documents_are_scored_apart(documents: list[list[int]], held_out: list[list[int]]) -> None:
    model = fitted(documents, 4)
    together = model.nats(*flat(held_out))
    alone = np.concatenate([model.nats(*flat([document])) for document in held_out])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_discounts_are_those_of_the_counts_of_counts() -> None:
    # By hand: Y = 100 / (100 + 2·40) = 5/9; 1 − 2Y·40/100, 2 − 3Y·20/40, 3 − 4Y·12/20.
    assert estimate_discounts(np.array([100, 40, 20, 12])) == pytest.approx((5 / 9, 7 / 6, 5 / 3))
    assert estimate_discounts(np.array([0, 40, 20, 12])) == FALLBACK_DISCOUNTS
    assert estimate_discounts(np.array([3, 0, 0, 0])) == FALLBACK_DISCOUNTS


def test_a_corpus_of_all_kinds_of_counts_has_estimated_discounts() -> None:
    generator = np.random.default_rng(0)
    documents = [[BOS, *(generator.zipf(1.5, 30) % 200).tolist()] for _ in range(200)]
    model = fitted(documents, 3, vocab_size=200)
    assert FALLBACK_DISCOUNTS not in model.discounts
    reference = Reference(documents, 3, vocab_size=200)
    np.testing.assert_allclose(model.discounts, reference.discounts[1:])
    for history in ([BOS], [BOS, 1], [BOS, 1, 1], [BOS, 5, 2], [BOS, 150, 1, 199]):
        expected = [reference.prob(tuple(history), token) for token in range(200)]
        np.testing.assert_allclose(model.probs(np.array(history)), expected, rtol=1e-12)


def test_a_vocabulary_of_128k_and_empty_documents_are_no_trouble() -> None:
    last = 128_255
    model = fitted([[last, 5, last - 1], [last]], 5, vocab_size=last + 1)
    assert model.nats(*flat([[last, 5, last - 1], [last]])).argmax() == 1
    assert fitted([[last]], 5, vocab_size=last + 1).probs(np.array([last])) == pytest.approx(1 / (last + 1))


def test_longer_histories_predict_a_book_better() -> None:
    text = gzip.decompress(ALICE.read_bytes()).decode()
    chapters = text.split("\n## ")[2:]
    tokenizer = train_tokenizer(chapters, 600)
    documents = [tokenizer.encode(chapter, bos=True, eos=True) for chapter in chapters]
    held_out = chapters[-2:]
    num_bytes = sum(len(chapter.encode()) for chapter in held_out)
    bits = []
    for order in (1, 2, 3, 4, 5):
        model = fitted(documents[:-2], order, vocab_size=tokenizer.vocab_size)
        nats = model.nats(*flat([document[:-1] for document in documents[-2:]]))
        bits.append(float(nats.sum()) / math.log(2) / num_bytes)
    assert bits[0] > bits[1] > bits[2] > bits[3]
    assert bits[4] < min(bits) * 1.005, "with little text the highest orders add little, and take nothing"
    assert 1.9 < bits[4] < 2.5
