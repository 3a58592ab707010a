"""Words of any script, and 64-bit hashes of n of them in a row."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Chinese, Japanese, Thai, Lao, Burmese and Khmer put no spaces between words: there each character counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(text.lower())


def ngram_hashes(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """A hash for every n words in a row; none where there are fewer.

    Equal on every machine and in every run. Two different n-grams of a corpus agree by chance about once in 2^32 pairs
    that differ in a single word, and once in 2^64 others: words are hashed to 32 bits before they are combined.
    """
    return combined(word_hashes(words), n)


def word_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """The CRC-32 of every word."""
    return np.fromiter((crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))


def combined(hashes_of_words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """`ngram_hashes` of words that are hashed already."""
    count = len(hashes_of_words) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * _MULTIPLIER + hashes_of_words[offset : offset + count] + np.uint64(1)
    return mix64(hashes)


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): every bit of the input reaches every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
