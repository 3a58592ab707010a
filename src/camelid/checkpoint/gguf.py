"""GGUF files: one file, or several parts, with metadata, vocabulary and tensors, dense or in blocks.

The container is read by `camelid.base.gguf_header`; here its contents become a Hugging Face config and tensors with
Hugging Face names. Block formats stay packed. (llama.cpp docs/gguf.md; gguf-py/gguf/constants.py.)
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError, did_you_mean
from camelid.checkpoint.base import Checkpoint, TensorInfo
from camelid.checkpoint.gguf_config import architecture_of, config_from_gguf, generation_config_from_gguf
from camelid.checkpoint.gguf_experts import joined, joined_shape
from camelid.checkpoint.gguf_parts import read_parts
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.pages import map_privately, release_pages
from camelid.codecs import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from mmap import mmap
    from pathlib import Path

    from torch import Tensor

    from camelid.base.gguf_header import GGUFTensorInfo
    from camelid.codecs.packed import PackedTensor
    from camelid.tokenizer import Tokenizer

DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""GGUF's dense types → torch's names."""

ROPE_DIVISORS = "rope_freqs.weight"


class GGUFCheckpoint(Checkpoint):
    """An opened GGUF file; its tensors are views into a private memory map, where their rows need no reordering.

    Of a model in several parts, the first is opened and leads to the others.

    Raises:
        NotFoundError: there is no such file, or a part of the model is missing.
        FormatError: the file is damaged, or holds a tensor that is unknown or of a type that can't be read.
        ConfigError: its architecture isn't supported.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header, self._files = read_parts(path)
        self._architecture = architecture_of(self._header, path)
        self._sources = self._rename()
        self._maps: dict[Path, mmap] = {}
        for part in self.files:
            with part.open("rb") as file:
                self._maps[part] = map_privately(file)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The contents of a `config.json`, from the metadata and from which tensors there are.

        Raises:
            FormatError: a setting is missing or contradicts the tensors.
            ConfigError: a setting that can't be honoured.
        """
        divisors = self._header.tensors.get(ROPE_DIVISORS)
        if divisors is not None and divisors.type_name not in DENSE:
            raise FormatError(f"divisors of rotary frequencies of the type {divisors.type_name}", where=self.path)
        return config_from_gguf(self._header, self.path, None if divisors is None else self._dense(divisors).float())

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""
        return {name: self._info(name, sources) for name, sources in self._sources.items()}

    def read(self, name: str) -> Tensor | PackedTensor:
        """One tensor, its rows in Hugging Face's order; experts' matrices are unpacked, since blocks have no other.

        Raises:
            NotFoundError: the file holds no such tensor.
            FormatError: the tensor has not the number of heads that the metadata states.
        """
        sources = self._sources.get(name)
        if sources is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self._sources))
        if name in self._experts:
            return joined([self._unpacked(source) for source in sources])
        (source,) = sources
        order_R = self._row_order(name, source)
        if source.type_name in DENSE:
            dense = self._dense(source)
            return dense if order_R is None else dense.index_select(0, order_R)
        return self._packed(source, order_R)

    @property
    def files(self) -> Sequence[Path]:
        """The file, or the parts that hold tensors."""
        return list(dict.fromkeys([self.path, *self._files.values()]))

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        for source in self._sources[name]:
            if (mapped := self._maps.get(self._files[source.name])) is not None:
                release_pages(mapped, source.offset, source.num_bytes)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer of the file's own vocabulary."""
        from camelid.tokenizer.gguf_vocab import from_gguf_metadata

        return from_gguf_metadata(self._header.metadata, where=self.path)

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template under `tokenizer.chat_template`."""
        template = self._header.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise FormatError("the chat template is not a text", where=f"{self.path}, tokenizer.chat_template")
        return template

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """Where text begins and which tokens end a reply."""
        return generation_config_from_gguf(self._header, self.path)

    def close(self) -> None:
        """Let go of the files; a map itself lives as long as a tensor looks into it."""
        self._maps.clear()

    def _rename(self) -> dict[str, tuple[GGUFTensorInfo, ...]]:
        """Hugging Face name → the tensor as the file describes it, or the several that it is made of."""
        readable = {*DENSE.values(), *FORMATS.names()}
        joined_by = {part: name for name, parts in self._architecture.experts.items() for part in parts}
        sources: dict[str, tuple[GGUFTensorInfo, ...]] = {}
        for name, source in self._header.tensors.items():
            stem, _, kind = name.rpartition(".")
            pattern, layer = split_layer(stem)
            if pattern in self._architecture.derived:
                continue
            renamed = self._architecture.names.get(pattern)
            whole = joined_by.get(pattern)
            if (renamed is None or kind not in ("weight", "bias")) and (whole is None or kind != "weight"):
                raise FormatError(
                    f"the tensor '{name}' has no place in the architecture '{self._architecture.model_type}'",
                    where=f"{self._files[name]}, byte {source.offset}",
                    hint="the model may be a variant that only its own tools read",
                )
            if _format_of(source) not in readable:
                raise FormatError(
                    f"the tensor '{name}' has the type {source.type_name}, which can't be read",
                    where=f"{self._files[name]}, byte {source.offset}",
                    hint="take the model in another quantisation: Q8_0, Q6_K, Q4_K_M",
                )
            if renamed is not None:
                sources[f"{renamed.format(layer=layer)}.{kind}"] = (source,)
            elif whole is not None:
                sources[whole.format(layer=layer)] = self._parts(whole, layer)
        return sources

    def _parts(self, whole: str, layer: str) -> tuple[GGUFTensorInfo, ...]:
        """The tensors that experts' matrices are made of."""
        names = [f"{part.format(layer=layer)}.weight" for part in self._architecture.experts[whole]]
        for name in names:
            if name not in self._header.tensors:
                raise FormatError(f"the tensor '{name}' is missing", where=self.path)
        return tuple(self._header.tensors[name] for name in names)

    @cached_property
    def _experts(self) -> frozenset[str]:
        """The Hugging Face names of experts' matrices."""
        return frozenset(name for name in self._sources if split_layer(name)[0] in self._architecture.experts)

    def _info(self, name: str, sources: Sequence[GGUFTensorInfo]) -> TensorInfo:
        num_bytes = sum(source.num_bytes for source in sources)
        if name not in self._experts:
            return TensorInfo(name, sources[0].shape, _format_of(sources[0]), num_bytes)
        shape = joined_shape([source.shape for source in sources], name, self.path)
        formats = {_format_of(source) for source in sources}
        dtype = formats.pop() if len(formats) == 1 and formats <= {*DENSE.values()} else "float32"
        return TensorInfo(name, shape, dtype, num_bytes)

    def _unpacked(self, source: GGUFTensorInfo) -> Tensor:
        if source.type_name in DENSE:
            return self._dense(source)
        packed = self._packed(source, None)
        return FORMATS.load(packed.format).unpack(packed)

    def _packed(self, source: GGUFTensorInfo, order_R: Tensor | None) -> PackedTensor:
        from camelid.codecs.packed import PackedTensor

        data_RB = self._bytes(source).view(source.num_elements // source.shape[-1], -1)
        data_RB = data_RB if order_R is None else data_RB.index_select(0, order_R)
        return PackedTensor(data_RB, _format_of(source), source.shape)

    def _row_order(self, name: str, source: GGUFTensorInfo) -> Tensor | None:
        """Which row of the file comes where, or None if they are in order.

        GGUF's llama rotates adjacent pairs of a head's dimensions, Hugging Face's its halves: row r·D/2 + i of a head
        is the file's row 2i + r of it (transformers, models/llama/convert_llama_weights_to_hf.py).
        """
        pattern, _ = split_layer(name.rpartition(".")[0])
        heads_key = self._architecture.interleaved.get(pattern)
        if heads_key is None:
            return None
        num_heads, head_dim, num_rows = self.config[heads_key], self.config["head_dim"], source.shape[0]
        if num_rows != num_heads * head_dim or head_dim % 2:
            raise FormatError(
                f"the tensor '{source.name}' has {num_rows} rows, not {num_heads} heads of {head_dim}", where=self.path
            )
        import torch

        return torch.arange(num_rows).view(num_heads, head_dim // 2, 2).transpose(1, 2).flatten()

    def _dense(self, source: GGUFTensorInfo) -> Tensor:
        import torch

        dtype = getattr(torch, DENSE[source.type_name])
        data = self._bytes(source)
        if source.offset % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(source.shape)

    def _bytes(self, source: GGUFTensorInfo) -> Tensor:
        import torch

        assert self._maps, f"{self.path} is closed"
        content = self._maps[self._files[source.name]]
        return torch.frombuffer(content, dtype=torch.uint8, count=source.num_bytes, offset=source.offset)


def _format_of(source: GGUFTensorInfo) -> str:
    return DENSE.get(source.type_name, source.type_name.lower())
