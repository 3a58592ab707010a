"""Hugging Face folders: `config.json`, safetensors (one file, or shards with an index), and what travels with them.

Only data is read. Code that a folder brings along (`auto_map`, `*.py`) is never imported.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import existing_file, exists
from camelid.base.strict_json import parse_json
from camelid.checkpoint.base import Checkpoint, TensorInfo
from camelid.checkpoint.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"

MAX_JSON_BYTES = 100_000_000
"""The largest `tokenizer.json` of a released Llama has 28 MB; the other files are far smaller."""


class HuggingFaceCheckpoint(Checkpoint):
    """A folder as the Hugging Face hub holds it.

    Raises:
        NotFoundError: `config.json`, the weights or a shard is missing.
        FormatError: a file is damaged, lies about its contents, or leads outside the folder.
    """

    format = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = self._json(CONFIG, required=True)
        self._shards: dict[str, SafetensorsFile] = {}
        self._shard_of: Mapping[str, str] = {}
        try:
            self._open_weights()
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of `config.json`."""
        return self._config

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of every shard."""
        infos = {}
        for name, shard in self._shard_of.items():
            entry = self._shards[shard].entries[name]
            infos[name] = TensorInfo(name, entry.shape, entry.dtype, entry.num_bytes)
        return infos

    def read(self, name: str) -> Tensor:
        """One tensor, as a view into the memory-mapped file."""
        return self._shards[self._shard_of[name]].read(name)

    @property
    def files(self) -> Sequence[Path]:
        """`config.json`, the index if there is one, and the shards."""
        names = [CONFIG, *sorted(self._shards)] if WEIGHTS in self._shards else [CONFIG, INDEX, *sorted(self._shards)]
        return [self.path / name for name in names]

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        self._shards[self._shard_of[name]].release(name)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer whose files lie in the folder."""
        from camelid.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    @cached_property
    def chat_template(self) -> str | None:
        """The template of `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`, in that order.

        Raises:
            FormatError: several named templates, none of them "default".
        """
        if (file := self._file(CHAT_TEMPLATE)) is not None:
            return read_text(file)
        for name in (CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG):
            template = self._json(name).get("chat_template")
            if template is not None:
                return _default_template(template, self.path / name)
        return None

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """The contents of `generation_config.json`; empty if there is none."""
        return self._json(GENERATION_CONFIG)

    @cached_property
    def preprocessor_config(self) -> Mapping[str, Any]:
        """The contents of `preprocessor_config.json`, or the `image_processor` of `processor_config.json`.

        Raises:
            FormatError: that is no table.
        """
        if settings := self._json(PREPROCESSOR_CONFIG):
            return settings
        settings = self._json(PROCESSOR_CONFIG).get("image_processor", {})
        if not isinstance(settings, dict):
            raise FormatError("'image_processor' is no table", where=self.path / PROCESSOR_CONFIG)
        return settings

    def close(self) -> None:
        """Let go of the shards; tensors already read stay valid."""
        for shard in self._shards.values():
            shard.close()

    def _open_weights(self) -> None:
        if (single := self._file(WEIGHTS)) is not None:
            self._shards[WEIGHTS] = SafetensorsFile(single)
            self._shard_of = dict.fromkeys(self._shards[WEIGHTS].entries, WEIGHTS)
            return
        if self._file(INDEX) is None:
            raise self._no_weights()
        self._shard_of = self._read_index()
        for shard in sorted(set(self._shard_of.values())):
            file = self._file(shard)
            if file is None:
                raise NotFoundError(
                    f"the shard '{shard}' is missing",
                    where=self.path,
                    hint=f"{INDEX} names it: fetch it, or the whole folder again",
                )
            self._shards[shard] = SafetensorsFile(file)
        self._check_index()

    def _read_index(self) -> Mapping[str, str]:
        where = self.path / INDEX
        weight_map = self._json(INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError("the index has no 'weight_map'", where=where)
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise FormatError(f"the index puts tensor {name!r} into {shard!r}, no safetensors file", where=where)
        return weight_map

    def _check_index(self) -> None:
        """The index and the shards must name the same tensors in the same places."""
        held = [(name, shard) for shard, file in self._shards.items() for name in file.entries]
        for name, shard in self._shard_of.items():
            if name not in self._shards[shard].entries:
                raise FormatError(f"tensor {name!r} is listed in {INDEX} but not there", where=self.path / shard)
        for name, shard in held:
            if self._shard_of.get(name) != shard:
                raise FormatError(f"tensor {name!r} is there but {INDEX} does not list it", where=self.path / shard)

    def _no_weights(self) -> NotFoundError:
        unsafe = sorted(file.name for pattern in ("*.bin", "*.pth", "*.pt") for file in self.path.glob(pattern))
        if unsafe:
            return NotFoundError(
                f"the weights are in {unsafe[0]}, a format that can run code when it is read",
                where=self.path,
                hint="convert them to safetensors first, or look for a revision of the model that has them",
            )
        return NotFoundError(f"there is neither {WEIGHTS} nor {INDEX}", where=self.path)

    def _file(self, name: str) -> Path | None:
        """The file of that name, None if there is none.

        Raises:
            FormatError: the name, or a symbolic link under it, leads outside the folder.
        """
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or ":" in name:
            raise FormatError(f"the file name {name!r} leads outside the folder", where=self.path)
        file = self.path / name
        if not exists(file):
            return None
        return file_inside(self.path, name)

    def _json(self, name: str, *, required: bool = False) -> Mapping[str, Any]:
        file = self._file(name)
        if file is None:
            if required:
                raise NotFoundError(f"there is no {name}", where=self.path)
            return {}
        return read_json(file)


def file_inside(folder: Path, name: str) -> Path:
    """The file of that name, which must be there.

    Raises:
        NotFoundError: it is not.
        FormatError: it is a symbolic link to somewhere outside the folder, and not into the hub's cache.
    """
    file = folder / name
    root, target = folder.resolve(), file.resolve()
    if not target.is_relative_to(root) and not any(_is_cached_blob(one, target) for one in (root, root.parent)):
        raise FormatError(
            f"'{name}' is a link to a file outside the folder",
            where=folder,
            hint="copy the file into the folder if you trust it",
        )
    return existing_file(file)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most `MAX_JSON_BYTES`.

    Raises:
        FormatError: not UTF-8, not JSON, not an object, a key named twice, or too large.
    """
    try:
        value = parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a JSON file: {error}", where=path) from error
    if not isinstance(value, dict):
        raise FormatError("expected a JSON object", where=path)
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text in a file of at most `MAX_JSON_BYTES`.

    Raises:
        FormatError: not UTF-8, or too large.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{size} bytes are more than the {MAX_JSON_BYTES} allowed", where=path)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not a UTF-8 text file: {error}", where=path) from error


def _is_cached_blob(folder: Path, target: Path) -> bool:
    """Whether a link goes where the hub's cache keeps files.

    `<cache>/<repo>/snapshots/<commit>/x` → `<cache>/<repo>/blobs/<hash>`, itself perhaps a link into the store that
    repositories share since huggingface_hub 2: `<cache>/blobs/<two digits>/<hash>`.
    """
    repository = folder.parent.parent
    own, shared = repository / "blobs", repository.parent / "blobs"
    return folder.parent.name == "snapshots" and (target.parent == own or target.parent.parent == shared)


def _default_template(template: Any, where: Path) -> str:
    """A template, or the default one of a list of `{"name", "template"}`."""
    if isinstance(template, str):
        return template
    if isinstance(template, list) and all(isinstance(one, dict) and _is_named(one) for one in template):
        named: dict[str, str] = {one["name"]: one["template"] for one in template}
        if "default" in named:
            return named["default"]
        raise FormatError(f"no chat template is named 'default', only {sorted(named)}", where=where)
    raise FormatError("'chat_template' is neither a text nor a list of named texts", where=where)


def _is_named(template: dict[str, Any]) -> bool:
    return isinstance(template.get("name"), str) and isinstance(template.get("template"), str)
