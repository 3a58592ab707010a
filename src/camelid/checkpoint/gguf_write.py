"""Write a checkpoint of any format as one GGUF file, as llama.cpp, Ollama and transformers read it.

with closing(open_checkpoint(Path("folder"))) as checkpoint:
    save_gguf(checkpoint, Path("model.gguf"), quantize="q4_k_m", tokenizer=checkpoint.load_tokenizer())
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from camelid.base.errors import ConfigError
from camelid.base.files import atomic_file, check_free_space
from camelid.base.progress import progress
from camelid.base.runtime import parse_dtype
from camelid.checkpoint.gguf import DENSE, ROPE_DIVISORS
from camelid.checkpoint.gguf_container import PlannedTensor, header_bytes, padding
from camelid.checkpoint.gguf_experts import rows_of_part
from camelid.checkpoint.gguf_metadata import architecture_named, generation_metadata, model_metadata, rope_divisors
from camelid.checkpoint.gguf_mix import DENSE_FILE_TYPES, MIXES, Shape, choose_format, find_mix
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.load import described_tensors
from camelid.codecs import FORMATS, codec_of
from camelid.codecs.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import IO

    from torch import Tensor

    from camelid.checkpoint.base import Checkpoint, TensorInfo
    from camelid.checkpoint.gguf_container import GGUFValue
    from camelid.checkpoint.gguf_mix import Mix
    from camelid.checkpoint.gguf_names import GGUFArchitecture
    from camelid.model.config import ModelConfig
    from camelid.tokenizer import Tokenizer

CHUNK_ELEMENTS: Final = 1 << 22
"""Weights converted at a time: 16 MB as float32. A tensor is never held a second time as a whole."""

LINEAGE_KEY: Final = "camelid.lineage"
"""Metadata key of the facts that a folder's `lineage.json` would hold, as JSON."""

_GGUF_DENSE: Final = {ours: theirs for theirs, ours in DENSE.items()}
_QUANTIZATION_VERSION: Final = 2


@dataclass(frozen=True)
class _Weight:
    """A tensor of the checkpoint and what becomes of it."""

    source: TensorInfo
    target: PlannedTensor
    format: str
    """Of the target: a dense dtype or a weight format in blocks."""
    num_heads: int | None
    """Of a matrix whose rows GGUF has in another order than Hugging Face."""
    part: tuple[int, int] | None
    """Of experts' matrices, of which GGUF has several: which one of how many."""


def save_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    quantize: str | None = None,
    dtype: str | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """Write a GGUF file; it appears under its name only once it is complete.

    Tensors are read, converted and written one after the other, a few rows at a time, so a model needs no memory beyond
    its largest tensor. What GGUF has no place for is refused, never left out; a `generation_config.json` keeps its
    tokens and the sampling settings in `gguf_config.SAMPLING`.

    Args:
        checkpoint: an open checkpoint of any format.
        path: of the new file; one of that name is replaced.
        quantize: a mixture of formats in blocks, a key of `gguf_mix.MIXES` in any case.
        dtype: of the matrices: "float32", "float16" or "bfloat16". Neither this nor `quantize`: each as it is. Vectors
            are float32 always, as llama.cpp wants them.
        tokenizer: its vocabulary goes into the file; without one, only camelid and transformers can open it.
        chat_template: the Jinja template.
        generation_config: the contents of a `generation_config.json`.
        lineage: facts for a JSON text under `camelid.lineage`, beside camelid's version.

    Raises:
        ConfigError: something that GGUF cannot hold, a weight that a format cannot, or contradicting arguments.
        FormatError: the checkpoint lacks a tensor or has one too many.
        TokenizerError: GGUF has no name for what this tokenizer does.
        ResourceError: not enough disk space. Whatever stood under `path` is as it was.
    """
    if path.is_dir():
        raise ConfigError("a folder is in the way", where=path, hint="name the file: model.gguf")
    if quantize is not None and dtype is not None:
        raise ConfigError("quantize and dtype exclude each other", where=path, hint="leave one out")
    if dtype is not None:
        dtype = str(parse_dtype(dtype)).removeprefix("torch.")
    config, tensors = described_tensors(checkpoint)
    _, architecture = architecture_named(config.model_type, checkpoint.path)
    weights = _plan(config, tensors, architecture, quantize, dtype)
    divisors = rope_divisors(config)
    targets = [weight.target for weight in weights]
    if divisors is not None:
        targets.insert(0, PlannedTensor(ROPE_DIVISORS, tuple(divisors.shape), "F32"))
    metadata = model_metadata(config, checkpoint.path)
    metadata |= {"general.type": "model", "general.name": checkpoint.path.resolve().stem}
    metadata |= _file_type(weights, quantize)
    if tokenizer is not None:
        from camelid.tokenizer.gguf_vocab_write import gguf_vocabulary

        metadata |= gguf_vocabulary(tokenizer, config.vocab_size)
    metadata |= generation_metadata(config, tokenizer, generation_config or {}, checkpoint.path)
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    metadata[LINEAGE_KEY] = _lineage_text(lineage)
    header = header_bytes(metadata, targets)
    total = sum(target.num_bytes + padding(target.num_bytes) for target in targets)
    check_free_space(path.resolve().parent, len(header) + total)
    with atomic_file(path.resolve()) as file, progress(f"writing {path.name}", total) as shown:
        file.write(header)
        if divisors is not None:
            _write_padded(file, [divisors], targets[0])
        for weight in weights:
            _write_padded(file, _converted(checkpoint, weight), weight.target)
            checkpoint.release(weight.source.name)
            shown.advance(weight.target.num_bytes)


def _plan(
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    architecture: GGUFArchitecture,
    quantize: str | None,
    dtype: str | None,
) -> list[_Weight]:
    """Every tensor with GGUF's name and the format it gets, in the order in which GGUF files have them."""
    shape = Shape(
        num_layers=config.num_hidden_layers,
        queries_per_key=config.num_attention_heads // config.num_key_value_heads,
        tied=config.tie_word_embeddings,
    )
    choice = _Choice(find_mix(quantize) if quantize is not None else None, dtype, shape, architecture.precise)
    parts = {name: part for part, name in architecture.names.items()}
    order = [*architecture.names, *(part for names in architecture.experts.values() for part in names)]
    heads = config.to_hf()
    target_shape: tuple[int, ...]
    weights = {}
    for name, source in tensors.items():
        pattern, layer = split_layer(name)
        expert_parts = architecture.experts.get(pattern, ())
        if expert_parts:
            experts, inputs, outputs = source.shape
            kind, target_shape = "weight", (experts, outputs // len(expert_parts), inputs)
        else:
            pattern, _, kind = pattern.rpartition(".")
            target_shape = source.shape
        heads_key = architecture.interleaved.get(pattern)
        for i, part in enumerate(expert_parts or [parts[pattern]]):
            format = choice.format(part, layer, target_shape, source)
            weights[int(layer or -1), order.index(part), kind] = _Weight(
                source,
                PlannedTensor(f"{part.format(layer=layer)}.{kind}", target_shape, _gguf_type(format, name)),
                format,
                num_heads=heads[heads_key] if heads_key else None,
                part=(i, len(expert_parts)) if expert_parts else None,
            )
    # What stands outside of the layers first: the embedding and the output, as llama.cpp writes them.
    return [weights[place] for place in sorted(weights)]


@dataclass(frozen=True)
class _Choice:
    """How formats are chosen."""

    mix: Mix | None
    dtype: str | None
    shape: Shape
    precise: frozenset[str]

    def format(self, part: str, layer: str, shape: tuple[int, ...], source: TensorInfo) -> str:
        """Of one of GGUF's tensors: a dense dtype or a weight format in blocks."""
        if len(shape) == 1 or part in self.precise:
            return "float32"
        if self.mix is None:
            return self.dtype or source.format
        bare = part.rpartition("}.")[2]
        return choose_format(self.mix, bare, int(layer) if layer else None, shape[-1], self.shape)


def _gguf_type(format: str, name: str) -> str:
    if format not in _GGUF_DENSE and format not in FORMATS.names():
        raise ConfigError(f"the tensor '{name}' is of the type {format}, which GGUF files do not hold")
    return _GGUF_DENSE.get(format, format.upper())


def _file_type(weights: Sequence[_Weight], quantize: str | None) -> dict[str, GGUFValue]:
    """`general.file_type`, by the mixture or else by the format of most bytes."""
    num_bytes: dict[str, int] = {}
    for weight in weights:
        num_bytes[weight.format] = num_bytes.get(weight.format, 0) + weight.target.num_bytes
    most = max(num_bytes, key=lambda format: num_bytes[format])
    plain = DENSE_FILE_TYPES | {mix.format: mix.file_type for mix in MIXES.values() if not mix.rules}
    file_type = find_mix(quantize).file_type if quantize is not None else plain.get(most, DENSE_FILE_TYPES["float16"])
    metadata: dict[str, GGUFValue] = {"general.file_type": file_type}
    if set(num_bytes) - set(DENSE_FILE_TYPES):
        metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    return metadata


def _lineage_text(lineage: Mapping[str, Any] | None) -> str:
    from camelid import __version__

    return json.dumps({"camelid": __version__, **(lineage or {})}, ensure_ascii=False)


def _write_padded(file: IO[bytes], pieces: Iterator[Tensor] | Sequence[Tensor], target: PlannedTensor) -> None:
    written = sum(file.write(piece.contiguous().view(torch.uint8).numpy().data) for piece in pieces)
    assert written == target.num_bytes, f"{target.name}: {written} bytes instead of {target.num_bytes}"
    file.write(bytes(padding(written)))


def _converted(checkpoint: Checkpoint, weight: _Weight) -> Iterator[Tensor]:
    """The tensor in its new format and GGUF's order of rows, some rows at a time."""
    value = checkpoint.read(weight.source.name)
    if weight.part is None:
        pieces: Iterator[Tensor | PackedTensor] = _rows(value, weight)
    else:
        assert not isinstance(value, PackedTensor), f"{weight.source.name}: experts are read unpacked"
        pieces = rows_of_part(value, *weight.part, max(CHUNK_ELEMENTS // weight.target.shape[-1], 1))
    for piece in pieces:
        yield _in_format(piece, weight)


def _rows(value: Tensor | PackedTensor, weight: _Weight) -> Iterator[Tensor | PackedTensor]:
    rows, columns = weight.source.shape[0], max(value.shape[-1] if len(value.shape) > 1 else 1, 1)
    order_R = torch.arange(rows)
    if weight.num_heads is not None:
        # Row 2i + r of a head is Hugging Face's row r·D/2 + i: see GGUFCheckpoint._row_order, which undoes it.
        order_R = order_R.view(weight.num_heads, 2, -1).transpose(1, 2).flatten()
    matrix = value if isinstance(value, PackedTensor) else value.reshape(rows, -1)
    for rows_R in torch.split(order_R, max(CHUNK_ELEMENTS // columns, 1)):
        taken = slice(int(rows_R[0]), int(rows_R[-1]) + 1) if weight.num_heads is None else rows_R
        if isinstance(matrix, PackedTensor):
            yield PackedTensor(matrix.data[taken], matrix.format, (len(rows_R), *matrix.shape[1:]))
        else:
            yield matrix[taken]


def _in_format(rows: Tensor | PackedTensor, weight: _Weight) -> Tensor:
    if isinstance(rows, PackedTensor) and rows.format == weight.format:
        return rows.data
    dense = codec_of(rows.format).unpack(rows) if isinstance(rows, PackedTensor) else rows
    if weight.format not in _GGUF_DENSE:
        try:
            return FORMATS.load(weight.format).pack(dense).data
        except ConfigError as error:
            raise ConfigError(error.what, where=weight.source.name, hint=error.hint) from error
    converted = dense.to(parse_dtype(weight.format))
    if converted.dtype != dense.dtype and not torch.equal(converted.isfinite(), dense.isfinite()):
        raise ConfigError(
            f"a weight is too large for {weight.format}",
            where=weight.source.name,
            hint="take bfloat16 or float32, which reach further",
        )
    return converted
