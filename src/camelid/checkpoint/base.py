"""A checkpoint, whatever its format: a config, named tensors, and what travels with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.codecs.packed import PackedTensor
    from camelid.tokenizer import Tokenizer


@dataclass(frozen=True)
class TensorInfo:
    """What a checkpoint says of one tensor, before it is read."""

    name: str
    """The architecture's Hugging Face name, whatever the file calls it."""
    shape: tuple[int, ...]
    """Row-major, as torch has it."""
    format: str
    """A weight format's name: a dense dtype ("float32", "bfloat16", "float16") or a block format ("q4_1")."""
    num_bytes: int
    """Bytes in the file."""


class Checkpoint(ABC):
    """An opened checkpoint. Opening reads headers only; tensors come one at a time, memory-mapped where possible."""

    path: Path
    format: str
    """ "huggingface", "meta", "gguf" or "llama2.c"."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The contents of a Hugging Face `config.json` that describes this model."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""

    @abstractmethod
    def read(self, name: str) -> Tensor | PackedTensor:
        """One tensor: dense as it lies in the file, or packed blocks where the format is one of blocks."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that the model was read from: weights and config."""
        return [self.path]

    def release(self, name: str) -> None:  # noqa: B027 - a format that maps no file has nothing to give
        """Give back what `read(name)` took of memory, so that going through a large checkpoint takes no more than one.

        Only for who has written nothing into that tensor and is done with it; it can be read again.
        """

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the model.

        Raises:
            TokenizerError: none came, or it is broken.
        """

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The Jinja chat template that came with the model."""

    @property
    @abstractmethod
    def generation_config(self) -> Mapping[str, Any]:
        """The contents of a `generation_config.json`; empty if none came."""

    @property
    def preprocessor_config(self) -> Mapping[str, Any]:
        """The contents of a `preprocessor_config.json`, which prepares images; empty if none came."""
        return {}

    def stated(self, key: str) -> Any:
        """What the config says, or its `text_config` where a model that reads more than text has one; None: nothing."""
        text = self.config.get("text_config")
        return self.config.get(key, text.get(key) if isinstance(text, dict) else None)

    @abstractmethod
    def close(self) -> None:
        """Release the files; tensors already read stay valid."""
