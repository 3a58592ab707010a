from __future__ import annotations

import random
import sqlite3

import numpy as np
import pytest
from prose import prose, with_words_changed

from camelid.data.dedup import ExactDedup, NearDedup, NearDeduplicator
from camelid.data.ngrams import ngram_hashes, words_of


def duplicates(step: ExactDedup | NearDedup, texts: list[str]) -> dict[int, int]:
    """Place of each text found to repeat another → place of that other."""
    deduplicator = step.build()
    index = deduplicator.open(sqlite3.connect(":memory:"), "seen")
    found = {place: index.first_seen(deduplicator.key(text), str(place)) for place, text in enumerate(texts)}
    return {place: int(earlier) for place, earlier in found.items() if earlier is not None}


def shingles(text: str) -> set[int]:
    return set(ngram_hashes(words_of(text), 5).tolist())


def test_exact_duplicates_keep_the_first() -> None:
    assert duplicates(ExactDedup(), ["a", "b", "a", "a ", "b"]) == {2: 0, 4: 1}


def test_planted_near_duplicates_are_found_with_high_recall_and_precision() -> None:
    """Copies with up to 2% of the words changed, a sentence taken out, or one put before: all must be found. Between
    the originals lie texts that share half their sentences with one of them: those must stay."""
    generator = random.Random(7)
    originals = [prose(seed, num_words=generator.randint(60, 400)) for seed in range(600)]
    texts = list(originals)
    planted: dict[int, int] = {}
    for place in range(0, 600, 2):
        change = generator.randrange(3)
        if change == 0:
            copy = with_words_changed(originals[place], generator.uniform(0.005, 0.02), seed=place)
        elif change == 1:
            copy = originals[place].partition(". ")[2].upper()
        else:
            copy = f"{prose(place + 10_000, num_words=6)}\n{originals[place]}"
        planted[len(texts)] = place
        texts.append(copy)
    for place in range(1, 600, 2):
        half = originals[place].split(". ")
        texts.append(". ".join(half[: len(half) // 2]) + ". " + prose(place + 20_000, num_words=len(half) * 6))

    found = duplicates(NearDedup(), texts)

    right = sum(found.get(copy) == original for copy, original in planted.items())
    assert right / len(planted) >= 0.95
    assert right / len(found) >= 0.99


def test_a_signature_estimates_the_jaccard_similarity() -> None:
    deduplicator = NearDeduplicator(NearDedup(num_bands=64, rows_per_band=8))
    text = prose(3, num_words=500)
    for share in (0.01, 0.05, 0.15):
        changed = with_words_changed(text, share, seed=1)
        true = len(shingles(text) & shingles(changed)) / len(shingles(text) | shingles(changed))
        one, other = (np.frombuffer(deduplicator.key(t), dtype=np.uint32) for t in (text, changed))
        # 512 hashes: the standard error is at most 0.022.
        assert np.mean(one == other) == pytest.approx(true, abs=0.07)


def test_punctuation_and_case_do_not_matter_and_the_text_does() -> None:
    text = prose(5)
    assert duplicates(NearDedup(), [text, text.lower().replace(".", " !"), prose(6)]) == {1: 0}


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    article = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    other = "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。"
    assert duplicates(NearDedup(), [article, article + "そうだ。", other]) == {1: 0}


def test_short_texts_and_texts_without_words() -> None:
    assert duplicates(NearDedup(), ["Yes.", "yes!", "No.", "…", "—", ""]) == {1: 0}


def test_a_long_text_is_hashed_in_pieces_to_the_same_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    deduplicator, text = NearDedup().build(), prose(9, num_words=1000)
    whole = deduplicator.key(text)
    monkeypatch.setattr("camelid.data.dedup.SHINGLES_AT_ONCE", 64)
    assert deduplicator.key(text) == whole
