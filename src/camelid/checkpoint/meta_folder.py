"""A folder as Meta releases it: `params.json`, `consolidated.NN.pth`, one file or several model-parallel shards.

What every generation of them shares; which tensor is what is `camelid.checkpoint.meta`'s and `meta_llama4`'s to know.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError, NotFoundError, TokenizerError
from camelid.checkpoint.base import Checkpoint
from camelid.checkpoint.huggingface import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR_CONFIG,
    file_inside,
    read_json,
    read_text,
)
from camelid.checkpoint.meta_params import PARAMS
from camelid.checkpoint.torch_zip import TorchFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from camelid.model.config import ModelConfig
    from camelid.tokenizer import Tokenizer

SHARD: Final = re.compile(r"consolidated(?:\.(\d{2}))?\.pth")
TOKENIZER: Final = "tokenizer.model"

MOST_SHARDS: Final = 16
"""Llama 3.1 405B has been released in as many."""


class MetaFolder(Checkpoint):
    """An opened folder; a subclass says what its tensors are.

    Raises:
        NotFoundError: `params.json` or a shard is missing.
        FormatError: a file is damaged, would run code, or contradicts another.
        ConfigError: it holds a model of another layout.
    """

    format = "meta"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._params = read_params(path)
        self._paths = shard_paths(path)
        self._shards: list[TorchFile] = []
        try:
            for shard in self._paths:
                self._shards.append(TorchFile(shard))
            self._check_shards()
            self._describe()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _describe(self) -> None:
        """Find out which tensor is what; no tensor is read."""

    def _check_shards(self) -> None:
        first = self._shards[0]
        for shard in self._shards[1:]:
            if shard.tensors.keys() != first.tensors.keys():
                odd = sorted(shard.tensors.keys() ^ first.tensors.keys())[0]
                raise FormatError(f"only some of the shards hold '{odd}'", where=shard.path)

    def _refuse_bytes(self) -> None:
        if opaque := self._shards[0].opaque:
            raise FormatError(f"{sorted(opaque)[0][:200]!r} is no tensor", where=self._shards[0].path)

    def _completed(
        self,
        config: Mapping[str, Any],
        config_class: type[ModelConfig],
        stated: Sequence[str],
        left_open: Sequence[str],
    ) -> Mapping[str, Any]:
        """The config with what a `config.json` beside says of things that Meta's files leave open.

        Args:
            config: what Meta's files say.
            config_class: reads both.
            stated: settings that both must agree on.
            left_open: settings that are the other file's to say.

        Raises:
            FormatError: the two disagree.
        """
        if not (self.path / CONFIG).exists():
            return config
        beside = read_json(file_inside(self.path, CONFIG))
        here, there = config_class.from_hf(config), config_class.from_hf(beside)
        for name in stated:
            if getattr(here, name) != getattr(there, name):
                raise FormatError(
                    f"{CONFIG} and {PARAMS} disagree on {name}: {getattr(there, name)} and {getattr(here, name)}",
                    where=self.path,
                )
        return {**config, **{name: beside[name] for name in left_open if name in beside}}

    @property
    def files(self) -> Sequence[Path]:
        """`params.json` and the shards."""
        return [self.path / PARAMS, *self._paths]

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder, or LLaMA 1's and 2's `tokenizer.model` in the folder above.

        Raises:
            TokenizerError: there is none, or it is broken.
        """
        from camelid.tokenizer import load_tokenizer

        if any((self.path / name).is_file() for name in ("tokenizer.json", TOKENIZER)):
            return load_tokenizer(self.path)
        above = self.path.resolve().parent / TOKENIZER
        if not above.is_file():
            raise TokenizerError(
                f"there is no {TOKENIZER}, neither in the folder nor above it",
                where=self.path,
                hint=f"put the release's {TOKENIZER} into the folder",
            )
        return load_tokenizer(above)

    @cached_property
    def chat_template(self) -> str | None:
        """A `chat_template.jinja` in the folder; Meta's own releases have none."""
        if not (self.path / CHAT_TEMPLATE).exists():
            return None
        return read_text(file_inside(self.path, CHAT_TEMPLATE))

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """A `generation_config.json` in the folder; Meta's own releases have none."""
        return self._beside(GENERATION_CONFIG)

    @cached_property
    def preprocessor_config(self) -> Mapping[str, Any]:
        """A `preprocessor_config.json` in the folder; Meta's own releases have none."""
        return self._beside(PREPROCESSOR_CONFIG)

    def _beside(self, name: str) -> Mapping[str, Any]:
        return read_json(file_inside(self.path, name)) if (self.path / name).exists() else {}

    def close(self) -> None:
        """Let go of the shards; tensors already read stay valid."""
        for shard in self._shards:
            shard.close()


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder in their order.

    Raises:
        NotFoundError: there is none, or one is missing.
    """
    found = {match[1]: file for file in folder.iterdir() if (match := SHARD.fullmatch(file.name))}
    if None in found and len(found) > 1:
        raise FormatError(
            "the folder holds consolidated.pth and numbered shards", where=folder, hint="keep one of them"
        )
    numbers = sorted(found, key=lambda number: int(number or 0))
    if not numbers:
        raise NotFoundError("there is no consolidated.00.pth", where=folder)
    for i, number in enumerate(numbers):
        if int(number or 0) != i:
            raise NotFoundError(f"the shard consolidated.{i:02}.pth is missing", where=folder, hint="fetch it again")
    if len(numbers) > MOST_SHARDS:
        raise FormatError(f"{len(numbers)} shards are more than any release has", where=folder)
    return [file_inside(folder, found[number].name) for number in numbers]


def is_meta_folder(folder: Path) -> bool:
    """Whether the folder holds what Meta's releases do."""
    return (folder / PARAMS).is_file() and any(SHARD.fullmatch(file.name) for file in folder.iterdir())


def read_params(folder: Path) -> Mapping[str, Any]:
    """The contents of `params.json`; some releases nest it under "model"."""
    params = read_json(file_inside(folder, PARAMS))
    nested = params.get("model")
    return nested if isinstance(nested, dict) else params
