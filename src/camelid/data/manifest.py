"""The manifest of a folder of token shards: what was tokenized, with which vocabulary, into which files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST: Final = "manifest.json"

Split = Literal["train", "validation"]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShardRecord(_Record):
    """One shard: a file of token ids and a file that says where its documents lie.

    `NAME.tokens` holds the ids of its documents end to end, in the manifest's `dtype`, little-endian.
    `NAME.documents` holds little-endian int64: the offset in tokens of every document and of the end, then the UTF-8
    bytes of every document's text.
    """

    name: Annotated[str, Field(pattern=r"^(train|validation)-[0-9]{5,}$")]
    tokens_sha256: Sha256
    documents_sha256: Sha256
    text_sha256: Sha256
    """SHA-256 of the SHA-256s of the documents' texts, which tells on resuming whether the corpus is still the same."""
    num_tokens: Count
    num_documents: Count
    num_bytes: Count
    """UTF-8 bytes of text."""


class Manifest(_Record):
    """What `manifest.json` says; it is written last, so a shard that it lists is whole."""

    format: Literal["camelid token shards"] = "camelid token shards"
    version: Literal[1] = 1
    vocabulary: Sha256
    """`Vocabulary.fingerprint` of the tokenizer."""
    vocab_size: Count
    dtype: Literal["uint16", "uint32"]
    bos: Count | None
    """Every document starts with this id; None if the vocabulary has none."""
    eos: Count
    """Every document ends with this id."""
    tokens_per_shard: Count
    validation_share: float
    complete: bool
    """Whether the corpus was tokenized to its end."""
    num_empty_documents: Count = 0
    """Texts without a character, which were left out."""
    train: tuple[ShardRecord, ...] = ()
    validation: tuple[ShardRecord, ...] = ()

    def shards(self, split: Split) -> tuple[ShardRecord, ...]:
        """The shards of one split, in order."""
        return self.train if split == "train" else self.validation

    def fingerprint(self, split: Split) -> str:
        """A hash of the split's tokens and documents, wherever they lie."""
        content = [(shard.tokens_sha256, shard.documents_sha256) for shard in self.shards(split)]
        return hashlib.sha256(repr((self.vocabulary, content)).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder, atomically."""
        write_text(folder / MANIFEST, self.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        NotFoundError: the folder has none.
        FormatError: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFoundError("there are no token shards here", where=folder)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        what = f"this is no manifest of token shards: {key}: {first['msg']}"
        raise FormatError(what, where=path, hint="write the shards anew") from error
