"""Token shards: a tokenized corpus as memory-mapped files.

write_shards(texts, tokenizer, folder, validation_share=0.01)
shards = TokenShards(folder, tokenizer)
shards.document(0)          # ids, bos and eos included
shards.tokens(0, 4096)      # of the documents end to end
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from camelid.base.errors import FormatError, NotFoundError, TokenizerError
from camelid.base.files import existing_file, sha256
from camelid.data.manifest import MANIFEST, Manifest, ShardRecord, read_manifest
from camelid.data.shard_writer import write_shards
from camelid.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from camelid.data.manifest import Split
    from camelid.tokenizer.base import Tokenizer

__all__ = ["Manifest", "TokenShards", "write_shards"]


class TokenShards:
    """One split of a folder of shards: its documents by number, and their tokens end to end as one stream.

    Opening reads the manifest and the sizes of the files; tokens are read from the disk when asked for.

    Args:
        folder: what `write_shards` filled.
        tokenizer: the tokenizer that it was filled with.
        split: "train" or "validation".

    Raises:
        NotFoundError: no shards, or no documents in this split.
        FormatError: a file's size is not what the manifest says, or the shards were never finished.
        TokenizerError: the shards are of another vocabulary.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, split: Split = "train") -> None:
        self.folder = folder
        self.split = split
        self.manifest = read_manifest(folder)
        self.vocabulary = Vocabulary.of(tokenizer)
        records = self.manifest.shards(split)
        if not self.manifest.complete:
            raise FormatError(
                "these shards were not finished",
                where=folder,
                hint="run the command that writes them again: it goes on where it was interrupted",
            )
        if self.manifest.vocabulary != self.vocabulary.fingerprint:
            raise TokenizerError(
                f"these shards hold ids of another vocabulary (of {self.manifest.vocab_size} tokens, "
                f"where this tokenizer has {tokenizer.vocab_size})",
                where=folder,
                hint="tokenize the corpus with the model's own tokenizer",
            )
        if not records:
            hint = "write them with a validation_share" if split == "validation" else "lower the validation_share"
            raise NotFoundError(f"there are no {split} documents here", where=folder, hint=hint)
        self._shards = [_Shard(folder, record, self.manifest.dtype) for record in records]
        self._first_tokens = list(accumulate((record.num_tokens for record in records), initial=0))
        self._first_documents = list(accumulate((record.num_documents for record in records), initial=0))

    def __len__(self) -> int:
        """How many documents there are."""
        return self._first_documents[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, bos and eos included."""
        return self._first_tokens[-1]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents' texts."""
        return sum(record.num_bytes for record in self.manifest.shards(self.split))

    @property
    def fingerprint(self) -> str:
        """A hash of the content; folders with the same tokens have the same."""
        return self.manifest.fingerprint(self.split)

    def document(self, index: int) -> NDArray[np.int64]:
        """The ids of a document, bos and eos included."""
        shard, local = self._of_document(index)
        return shard.ids[shard.offsets[local] : shard.offsets[local + 1]].astype(np.int64)

    def document_bytes(self, index: int) -> int:
        """UTF-8 bytes of a document's text."""
        shard, local = self._of_document(index)
        return int(shard.num_bytes[local])

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens `start` up to `stop` of the documents end to end."""
        assert 0 <= start <= stop <= self.num_tokens
        parts = [shard.ids[first:last] for shard, first, last, _ in self._stretches(start, stop)]
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, dtype=np.int64)

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where documents start from token `start` up to `stop`, counted in the same stream, ascending."""
        parts = []
        for shard, first, last, base in self._stretches(start, stop):
            low, high = np.searchsorted(shard.offsets[:-1], (first, last))
            parts.append(shard.offsets[low:high] + base)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def verify(self) -> None:
        """Read every file and compare its hash.

        Raises:
            FormatError: a file is damaged; `where` names it.
        """
        for shard in self._shards:
            for path, expected in shard.files():
                if sha256(path) != expected:
                    raise FormatError(
                        "this file's content is not what the manifest says", where=path, hint="write the shards anew"
                    )

    def _of_document(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no document {index} among {len(self)}")
        number = bisect_right(self._first_documents, index) - 1
        return self._shards[number], index - self._first_documents[number]

    def _stretches(self, start: int, stop: int) -> list[tuple[_Shard, int, int, int]]:
        """The shards that a stretch of the stream touches: shard, first and last token in it, its place."""
        stretches = []
        number = bisect_right(self._first_tokens, start) - 1
        while start < stop:
            base, end = self._first_tokens[number], min(stop, self._first_tokens[number + 1])
            stretches.append((self._shards[number], start - base, end - base, base))
            start, number = end, number + 1
        return stretches


class _Shard:
    """The two files of one shard, mapped into memory."""

    def __init__(self, folder: Path, record: ShardRecord, dtype: str) -> None:
        self._record = record
        self._tokens_file = folder / f"{record.name}.tokens"
        self._documents_file = folder / f"{record.name}.documents"
        self.ids = _mapped(self._tokens_file, np.dtype(dtype).newbyteorder("<"), record.num_tokens)
        documents = _mapped(self._documents_file, np.dtype("<i8"), 2 * record.num_documents + 1)
        self.offsets = documents[: record.num_documents + 1]
        self.num_bytes = documents[record.num_documents + 1 :]
        if self.offsets[0] != 0 or self.offsets[-1] != record.num_tokens:
            raise FormatError(
                f"the documents do not span the shard's {record.num_tokens} tokens",
                where=self._documents_file,
                hint=f"is it the file of another {MANIFEST}? write the shards anew",
            )

    def files(self) -> list[tuple[Path, str]]:
        """The files and their expected hashes."""
        return [
            (self._tokens_file, self._record.tokens_sha256),
            (self._documents_file, self._record.documents_sha256),
        ]


def _mapped(path: Path, dtype: np.dtype[np.integer], count: int) -> NDArray[np.integer]:
    size = existing_file(path).stat().st_size
    if size != count * dtype.itemsize:
        raise FormatError(
            f"the file has {size} bytes where the manifest says {count * dtype.itemsize}",
            where=path,
            hint="write the shards anew",
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)).view(
        np.ndarray
    )  # slices of a memmap are slow to make
