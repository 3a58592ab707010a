"""Texts to token shards: streamed, on several cores, resumable after a kill."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from camelid.base.errors import FormatError, RecipeError, TokenizerError
from camelid.base.files import atomic_file
from camelid.data.manifest import MANIFEST, Manifest, ShardRecord, read_manifest
from camelid.data.vocabulary import Vocabulary
from camelid.tokenizer.base import scalar_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from camelid.data.manifest import Split
    from camelid.tokenizer.base import Tokenizer

TOKENS_PER_SHARD: Final = 1 << 24
TASK_LENGTH: Final = 1 << 18
"""Characters that a thread tokenizes at a time; a longer document is a task of its own."""


class HasText(Protocol):
    """Anything with a text, a document of the cleaning pipeline for one."""

    @property
    def text(self) -> str:
        """The text."""


def write_shards(
    texts: Iterable[str | HasText],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    validation_share: float = 0.0,
    num_threads: int | None = None,
) -> Manifest:
    """Tokenize documents into a folder that `TokenShards` opens.

    Every document is `[bos] text eos`, with bos if the vocabulary has one; control tokens spelt out in a text are
    ordinary characters. Memory is that of one shard of each split and a few tasks per thread, whatever the corpus.

    A shard counts once it is in the manifest. Called again with the same arguments after a kill, the function goes over
    the texts of finished shards without tokenizing them, checks that they are still the same, and goes on. The files
    come out the same as without the kill. Texts may have been added at the end; they get shards of their own. One
    process at a time writes to a folder.

    Args:
        texts: the documents, in the same order on every call. Empty ones are counted and left out.
        tokenizer: whose ids are written, as uint16 if they fit and uint32 if not.
        folder: where to; it may exist, empty or with the shards of an earlier call.
        tokens_per_shard: a shard is closed when it has so many; documents are never cut.
        validation_share: the share of documents held out. A hash of the text chooses them, so that a document stays on
            its side when the corpus grows, and copies of it go there too.
        num_threads: threads that tokenize; all cores if not given. Does not change what is written.

    Raises:
        RecipeError: a setting has an impossible value.
        TokenizerError: the vocabulary has no end-of-sequence token.
        FormatError: there are no documents, or the folder holds shards of another corpus, vocabulary or setting.
        ResourceError: the disk is full; finished shards stay.
    """
    if tokens_per_shard < 1:
        raise RecipeError(f"a shard cannot hold {tokens_per_shard} tokens", where="tokens_per_shard")
    if not 0 <= validation_share < 1:
        raise RecipeError(f"{validation_share} is no share from 0 up to 1", where="validation_share")
    started = _started(tokenizer, folder, tokens_per_shard, validation_share)
    corpus = _Corpus(texts, folder, started)
    for document, ids in _tokenized(corpus.unfinished(), tokenizer, num_threads or os.cpu_count() or 1):
        if corpus.splits[document.split].add(document, ids) >= tokens_per_shard:
            corpus.close_shard(document.split)
    return corpus.finish()


@dataclass(frozen=True)
class _Document:
    text: str
    num_bytes: int
    digest: bytes
    split: Split


@dataclass
class _OpenSplit:
    """The shards of one split: the finished ones, and what the next one will hold."""

    finished: tuple[ShardRecord, ...]
    ids: bytearray = field(default_factory=bytearray)
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    num_bytes: array[int] = field(default_factory=lambda: array("q"))
    text: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, document: _Document, ids: NDArray[np.integer]) -> int:
        """Take a document in; returns the tokens of the open shard."""
        self.ids += ids.tobytes()
        self.offsets.append(self.offsets[-1] + len(ids))
        self.num_bytes.append(document.num_bytes)
        self.text.update(document.digest)
        return self.offsets[-1]


class _Corpus:
    def __init__(self, texts: Iterable[str | HasText], folder: Path, started: Manifest) -> None:
        self.splits: dict[Split, _OpenSplit] = {
            "train": _OpenSplit(started.train),
            "validation": _OpenSplit(started.validation),
        }
        self._texts = texts
        self._folder = folder
        self._manifest = started
        self._num_empty = 0

    def unfinished(self) -> Iterator[_Document]:
        """The documents that no finished shard holds."""
        finished = {split: _FinishedTexts(self._folder, o.finished) for split, o in self.splits.items()}
        for item in self._texts:
            document = _document(item if isinstance(item, str) else item.text, self._manifest.validation_share)
            if document is None:
                self._num_empty += 1
            elif not finished[document.split].has(document):
                yield document
        for texts in finished.values():
            texts.check_exhausted()

    def close_shard(self, split: Split) -> None:
        """Write the open shard of a split and list it in the manifest."""
        open_split = self.splits[split]
        name = f"{split}-{len(open_split.finished):05}"
        documents = b"".join(
            np.array(part, dtype="<i8").tobytes() for part in (open_split.offsets, open_split.num_bytes)
        )
        record = ShardRecord(
            name=name,
            tokens_sha256=_write(self._folder / f"{name}.tokens", open_split.ids),
            documents_sha256=_write(self._folder / f"{name}.documents", documents),
            text_sha256=open_split.text.hexdigest(),
            num_tokens=open_split.offsets[-1],
            num_documents=len(open_split.num_bytes),
            num_bytes=sum(open_split.num_bytes),
        )
        self.splits[split] = _OpenSplit((*open_split.finished, record))
        self._write_manifest(complete=False)

    def finish(self) -> Manifest:
        """Close what is open; returns the manifest, which is now complete."""
        for split in self.splits:
            if self.splits[split].num_bytes:
                self.close_shard(split)
        if not any(open_split.finished for open_split in self.splits.values()):
            raise FormatError("the corpus has no documents", where=self._folder, hint="look at its files and filters")
        return self._write_manifest(complete=True)

    def _write_manifest(self, *, complete: bool) -> Manifest:
        manifest = self._manifest.model_copy(
            update={
                "complete": complete,
                "num_empty_documents": self._num_empty if complete else 0,
                "train": self.splits["train"].finished,
                "validation": self.splits["validation"].finished,
            }
        )
        manifest.write(self._folder)
        return manifest


class _FinishedTexts:
    """Recognises the documents of finished shards, in order, and notices when the corpus has changed."""

    def __init__(self, folder: Path, shards: tuple[ShardRecord, ...]) -> None:
        self._folder = folder
        self._shards = deque(shards)
        self._num_seen = 0
        self._text = hashlib.sha256()

    def has(self, document: _Document) -> bool:
        if not self._shards:
            return False
        self._text.update(document.digest)
        self._num_seen += 1
        if self._num_seen == self._shards[0].num_documents:
            if self._text.hexdigest() != self._shards[0].text_sha256:
                raise self._changed()
            self._shards.popleft()
            self._num_seen, self._text = 0, hashlib.sha256()
        return True

    def check_exhausted(self) -> None:
        if self._shards:
            raise self._changed()

    def _changed(self) -> FormatError:
        return FormatError(
            f"the texts of shard {self._shards[0].name} are not those of this corpus",
            where=self._folder,
            hint="the corpus or its cleaning has changed since: write to a new folder, or delete this one",
        )


def _started(tokenizer: Tokenizer, folder: Path, tokens_per_shard: int, validation_share: float) -> Manifest:
    """The manifest to go on from: what the folder has, or an empty one."""
    if tokenizer.special.eos is None:
        raise TokenizerError(
            "this vocabulary has no end-of-sequence token to end documents with",
            hint="a model that never sees an end never learns to stop: add one to the vocabulary",
        )
    asked = Manifest(
        vocabulary=Vocabulary.of(tokenizer).fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=_dtype(tokenizer),
        bos=tokenizer.special.bos,
        eos=tokenizer.special.eos,
        tokens_per_shard=tokens_per_shard,
        validation_share=float(validation_share),
        complete=False,
    )
    for leftover in (*folder.glob(".train-*.partial"), *folder.glob(".validation-*.partial")):
        leftover.unlink()
    if not (folder / MANIFEST).is_file():
        return asked
    found = read_manifest(folder)
    for name in ("vocabulary", "vocab_size", "bos", "eos", "tokens_per_shard", "validation_share"):
        before, now = getattr(found, name), getattr(asked, name)
        if before != now:
            raise FormatError(
                f"the folder holds shards of another {name}: {before}, now {now}",
                where=folder,
                hint="write to a new folder, or delete this one",
            )
    return found


def _dtype(tokenizer: Tokenizer) -> Literal["uint16", "uint32"]:
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"


def _document(text: str, validation_share: float) -> _Document | None:
    """The text with its size, hash and split; None if it is empty."""
    if not text:
        return None
    text = scalar_text(text)
    data = text.encode()
    digest = hashlib.sha256(data).digest()
    held_out = int.from_bytes(digest[:8], "big") < validation_share * 2.0**64
    return _Document(text, len(data), digest, "validation" if held_out else "train")


def _tokenized(
    documents: Iterable[_Document], tokenizer: Tokenizer, num_threads: int
) -> Iterator[tuple[_Document, NDArray[np.integer]]]:
    """The documents and their ids, in order; tiktoken and tokenizers run outside Python's lock."""
    has_bos = tokenizer.special.bos is not None
    dtype = np.dtype(_dtype(tokenizer)).newbyteorder("<")

    def encode(task: list[_Document]) -> list[NDArray[np.integer]]:
        return [np.array(tokenizer.encode(d.text, bos=has_bos, eos=True), dtype=dtype) for d in task]

    running: deque[tuple[list[_Document], Future[list[NDArray[np.integer]]]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for task in _tasks(documents):
                running.append((task, pool.submit(encode, task)))
                if len(running) > 2 * num_threads:
                    done, ids = running.popleft()
                    yield from zip(done, ids.result(), strict=True)
            while running:
                done, ids = running.popleft()
                yield from zip(done, ids.result(), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _tasks(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    task: list[_Document] = []
    length = 0
    for document in documents:
        task.append(document)
        length += len(document.text)
        if length >= TASK_LENGTH:
            yield task
            task, length = [], 0
    if task:
        yield task


def _write(path: Path, data: bytes | bytearray) -> str:
    """Write a file atomically; returns its SHA-256."""
    with atomic_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()
