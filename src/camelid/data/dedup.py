"""Exact and near duplicates, found in an index on disk: memory does not grow with the corpus.

Near duplicates: the Jaccard similarity of two documents' sets of word n-grams is estimated from MinHash signatures
(Broder 1997, "On the resemblance and containment of documents"); pairs worth estimating are those that agree in a
whole band of their signatures (locality-sensitive hashing; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4). Of a group of duplicates the first in the order of the corpus stays. A document is compared
with the ones that stayed, so in a chain where each link resembles only the next, every second may stay.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
from pydantic import Field

from camelid.data.ngrams import mix64, ngram_hashes, words_of
from camelid.data.steps import Deduplicator, StepRecipe

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

SHINGLES_AT_ONCE: Final = 8192
"""Shingles hashed together: 8 MB of hashes for 120 hash functions."""


class ExactDedup(StepRecipe):
    """Drops a document whose text has been seen before, character for character."""

    step: Literal["exact_dedup"] = "exact_dedup"

    def build(self) -> ExactDeduplicator:
        """The deduplicator."""
        return ExactDeduplicator()


class ExactDeduplicator(Deduplicator):
    """The deduplicator of `ExactDedup`."""

    rule = "duplicate"

    def key(self, text: str) -> bytes:
        """128 bits of BLAKE2b."""
        return blake2b(text.encode(), digest_size=16).digest()

    def open(self, database: sqlite3.Connection, name: str) -> ExactIndex:
        """The index under that name."""
        return ExactIndex(database, name)


class ExactIndex:
    """Hashes of the texts seen, with the first one's id."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        database.execute(f"CREATE TABLE IF NOT EXISTS {name} (key BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID")
        self.database = database
        self.name = name

    def first_seen(self, key: bytes, document_id: str) -> str | None:
        """The id of the earlier document with this hash."""
        row = self.database.execute(f"SELECT id FROM {self.name} WHERE key = ?", (key,)).fetchone()
        if row:
            return str(row[0])
        self.database.execute(f"INSERT INTO {self.name} VALUES (?, ?)", (key, document_id))
        return None


class NearDedup(StepRecipe):
    """Drops a document that shares most of its word n-grams with an earlier one.

    With 20 bands of 6 hashes a pair of similarity 0.7 is compared with probability 0.92, one of 0.8 with 0.998.
    """

    step: Literal["near_dedup"] = "near_dedup"
    shingle_words: Annotated[int, Field(ge=1)] = 5
    """Words of an n-gram; in scripts without spaces, characters. A shorter document is one shingle."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The estimated Jaccard similarity from which on the later document is dropped."""
    num_bands: Annotated[int, Field(ge=1)] = 20
    rows_per_band: Annotated[int, Field(ge=1)] = 6

    def build(self) -> NearDeduplicator:
        """The deduplicator."""
        return NearDeduplicator(self)


class NearDeduplicator(Deduplicator):
    """The deduplicator of `NearDedup`."""

    rule = "near_duplicate"

    def __init__(self, settings: NearDedup) -> None:
        self.settings = settings
        num_hashes = settings.num_bands * settings.rows_per_band
        # x → (a x + b) >> 32 with odd a is universal (Dietzfelbinger et al. 1997); a and b are fixed random numbers.
        self.factors_H1 = mix64(np.arange(1, num_hashes + 1, dtype=np.uint64))[:, None] | np.uint64(1)
        self.offsets_H1 = mix64(np.arange(num_hashes + 1, 2 * num_hashes + 1, dtype=np.uint64))[:, None]

    def key(self, text: str) -> bytes:
        """The MinHash signature, 4 bytes for each hash function; empty for a text without words."""
        words = words_of(text)
        if not words:
            return b""
        shingles_N = np.unique(ngram_hashes(words, min(self.settings.shingle_words, len(words))))
        return self.signature(shingles_N).tobytes()

    def signature(self, shingles_N: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The least hash of the shingles under each of the H hash functions."""
        least_H = np.full(len(self.factors_H1), np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(shingles_N), SHINGLES_AT_ONCE):
            hashes_HN = self.factors_H1 * shingles_N[start : start + SHINGLES_AT_ONCE] + self.offsets_H1
            hashes_HN >>= np.uint64(32)
            least_H = np.minimum(least_H, hashes_HN.min(axis=1).astype(np.uint32))
        return least_H

    def open(self, database: sqlite3.Connection, name: str) -> NearIndex:
        """The index under that name."""
        return NearIndex(database, name, self.settings)


class NearIndex:
    """Signatures of the documents that stayed, and which of them have which bands."""

    def __init__(self, database: sqlite3.Connection, name: str, settings: NearDedup) -> None:
        database.execute(f"CREATE TABLE IF NOT EXISTS {name} (number INTEGER PRIMARY KEY, id TEXT, signature BLOB)")
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {name}_bands (hash INTEGER, number INTEGER, PRIMARY KEY (hash, number))"
            " WITHOUT ROWID"
        )
        self.database = database
        self.settings = settings
        self.insert = f"INSERT INTO {name} (id, signature) VALUES (?, ?)"
        self.insert_band = f"INSERT OR IGNORE INTO {name}_bands VALUES (?, ?)"
        # One document may share several bands; it is looked at once.
        places = ", ".join("?" * settings.num_bands)
        self.candidates = (
            f"SELECT id, signature FROM {name} WHERE number IN"
            f" (SELECT number FROM {name}_bands WHERE hash IN ({places})) ORDER BY number"
        )

    def first_seen(self, key: bytes, document_id: str) -> str | None:
        """The id of the earliest document that is similar enough."""
        if not key:
            return None
        signature_H = np.frombuffer(key, dtype=np.uint32)
        bands = self._bands(signature_H)
        for earlier, other in self.database.execute(self.candidates, bands):
            if np.mean(np.frombuffer(other, dtype=np.uint32) == signature_H) >= self.settings.threshold:
                return str(earlier)
        number = self.database.execute(self.insert, (document_id, key)).lastrowid
        self.database.executemany(self.insert_band, ((band, number) for band in bands))
        return None

    def _bands(self, signature_H: NDArray[np.uint32]) -> list[int]:
        """A 64-bit hash for each band, different ones for equal content in different bands."""
        rows = signature_H.reshape(self.settings.num_bands, -1).astype(np.uint64)
        hashes = np.arange(self.settings.num_bands, dtype=np.uint64)
        for row in rows.T:
            hashes = mix64(hashes ^ row) + np.uint64(0x9E3779B97F4A7C15)
        bands: list[int] = hashes.view(np.int64).tolist()
        return bands
