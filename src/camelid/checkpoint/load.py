"""Open a checkpoint of any format, and stream it into a model one tensor at a time.

with closing(open_checkpoint(Path("path/to/folder"))) as checkpoint:
    model = load_model(checkpoint, device="cuda", dtype=torch.bfloat16)
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from camelid.base.errors import ConfigError, FormatError, NotFoundError, ResourceError
from camelid.base.files import exists, format_bytes, near_names
from camelid.base.progress import progress
from camelid.base.runtime import available_memory, parse_dtype
from camelid.checkpoint.gguf_parts import is_later_part
from camelid.checkpoint.huggingface import CONFIG, INDEX, WEIGHTS, HuggingFaceCheckpoint
from camelid.checkpoint.llama2c import HEADER, Llama2CCheckpoint, is_llama2_c
from camelid.checkpoint.meta_params import PARAMS
from camelid.checkpoint.stored_zip import MARK
from camelid.checkpoint.text_part import text_part
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.model import ARCHITECTURES
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

    from camelid.checkpoint.base import Checkpoint, TensorInfo
    from camelid.model.base import LanguageModel
    from camelid.model.config import ModelConfig

IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Buffers that old converters wrote along; they follow from the config."""

TIED = {"lm_head.weight": ("model.embed_tokens.weight", "model.decoder.embed_tokens.weight")}
"""With tied embeddings: a tensor that a file may hold once more → the one it must equal, under any of its names."""

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""How a description of objects begins that stands by itself, as in files of torch.save before 2020."""

CONVERT = "convert it to a Hugging Face folder with safetensors, or to GGUF"

_log = logging.getLogger("camelid")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder or file by what is in it, whatever its name.

    Raises:
        NotFoundError: nothing is there, or nothing that is a model.
        FormatError: it is damaged, or of a format that is not readable.
        ResourceError: its permissions forbid reading it.
    """
    if not exists(path):
        raise NotFoundError("there is no such file or folder", where=path, hint=near_names(path))
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except PermissionError as error:
        raise ResourceError("this may not be read", where=error.filename or path) from error


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    packed: bool | None = False,
) -> LanguageModel:
    """Build the model that a checkpoint describes and fill every parameter exactly once.

    A dense tensor that already has the right dtype and is wanted on the CPU stays a view into the file: nothing is
    copied, and a write to it never reaches the file.

    Args:
        checkpoint: an open checkpoint; it may be closed afterwards.
        device: where the parameters are wanted.
        dtype: of the dense parameters; None: the checkpoint's own on an accelerator; on the CPU float32 (packed weights
            compute in it) if it fits into memory, else the checkpoint's own.
        packed: keep weights that come in blocks as they are; None: where a native kernel multiplies with them.

    Raises:
        ConfigError: the config asks for what the architecture cannot do.
        FormatError: a tensor is missing, unexpected or of the wrong shape.
        NotFoundError: the architecture is not known.
        ResourceError: the model does not fit into memory.
    """
    device = torch.device(device)
    architecture, config = _architecture(checkpoint)
    with torch.device("meta"):
        model = architecture.from_config(config)
    slots = _slots(model)
    _check_names_and_shapes(checkpoint, slots, tied=config.tie_word_embeddings)
    kept = _kept_formats(checkpoint, packed, device)
    dtype = dtype or _default_dtype(checkpoint, parse_dtype(config.dtype), device, kept)
    _check_fits(checkpoint, dtype, device, kept)
    with progress(
        f"loading {checkpoint.path.name}", sum(checkpoint.tensors[name].num_bytes for name in slots)
    ) as shown:
        for name, (module, leaf) in slots.items():
            _fill(module, leaf, checkpoint.read(name), name=name, device=device, dtype=dtype, kept=kept)
            shown.advance(checkpoint.tensors[name].num_bytes)
    return model


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a checkpoint, as its architecture reads it.

    Raises:
        ConfigError: the config asks for what the architecture cannot do.
        FormatError: it asks for more layers than there are tensors.
        NotFoundError: the architecture is not known.
    """
    config: ModelConfig = _architecture(checkpoint)[1]
    return config


def described_tensors(checkpoint: Checkpoint) -> tuple[ModelConfig, Mapping[str, TensorInfo]]:
    """The config of a checkpoint, and exactly the tensors that its model is made of, in the model's order.

    Nothing is read but copies of tied tensors; what the model has no use for is left out or refused as `load_model`
    does.

    Raises:
        ConfigError: the config asks for what the architecture cannot do.
        FormatError: a tensor is missing, unexpected, of the wrong shape or of whole numbers.
        NotFoundError: the architecture is not known.
    """
    architecture, config = _architecture(checkpoint)
    with torch.device("meta"):
        slots = _slots(architecture.from_config(config))
    _check_names_and_shapes(checkpoint, slots, tied=config.tie_word_embeddings)
    tensors = {name: checkpoint.tensors[name] for name in slots}
    for name, info in tensors.items():
        if info.format not in FORMATS.names() and not getattr(torch, info.format).is_floating_point:
            raise FormatError(f"tensor '{name}' holds {info.format}, no floating-point numbers", where=checkpoint.path)
    return config, tensors


def required_memory(
    checkpoint: Checkpoint, dtype: torch.dtype, packed: bool | None = False, device: str | torch.device = "cpu"
) -> int:
    """Bytes that the parameters take once loaded, without activations and cache; arguments as for `load_model`."""
    return _required_memory(checkpoint, dtype, _kept_formats(checkpoint, packed, torch.device(device)))


def _required_memory(checkpoint: Checkpoint, dtype: torch.dtype, kept: frozenset[str]) -> int:
    return sum(
        info.num_bytes if info.format in kept and len(info.shape) == 2 else math.prod(info.shape) * dtype.itemsize
        for name, info in checkpoint.tensors.items()
        if not IGNORED.fullmatch(name)
    )


def _architecture(checkpoint: Checkpoint) -> tuple[type[LanguageModel], Any]:
    settings = checkpoint.config
    model_type = settings.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError("the config has no 'model_type'", where=checkpoint.path)
    architecture = ARCHITECTURES.load(model_type)
    config = architecture.config_class.from_hf(settings)
    if config.num_hidden_layers > len(checkpoint.tensors):
        raise FormatError(
            f"the config asks for {config.num_hidden_layers} layers, but there are only "
            f"{len(checkpoint.tensors)} tensors",
            where=checkpoint.path,
        )
    return architecture, config


def _slots(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every parameter's name → the module that holds it, and its name there."""
    return {
        f"{path}.{leaf}" if path else leaf: (module, leaf)
        for path, module in model.named_modules()
        for leaf, _ in module.named_parameters(recurse=False)
    }


def _check_names_and_shapes(checkpoint: Checkpoint, slots: Mapping[str, tuple[nn.Module, str]], *, tied: bool) -> None:
    tensors = checkpoint.tensors
    if missing := [name for name in slots if name not in tensors]:
        raise FormatError(f"missing in the checkpoint: {_some(missing)}", where=checkpoint.path)
    for name, (module, leaf) in slots.items():
        expected = tuple(module.get_parameter(leaf).shape)
        if tensors[name].shape != expected:
            raise FormatError(
                f"tensor '{name}' has the shape {list(tensors[name].shape)} where the config asks for {list(expected)}",
                where=checkpoint.path,
            )
    unexpected = [name for name in tensors if name not in slots and not IGNORED.fullmatch(name)]
    for name, originals in TIED.items() if tied else ():
        original = next((original for original in originals if original in slots), None)
        if name in unexpected and original is not None:
            _check_copy(checkpoint, name, original)
            unexpected.remove(name)
    if unexpected:
        raise FormatError(
            f"the checkpoint holds what this architecture has no place for: {_some(unexpected)}",
            where=checkpoint.path,
            hint="the config may not be this checkpoint's own",
        )


def _check_copy(checkpoint: Checkpoint, name: str, original: str) -> None:
    """A tensor that the config calls tied to another must be its equal, or dropping it would change the model."""
    one, other = checkpoint.read(name), checkpoint.read(original)
    if isinstance(one, PackedTensor) or isinstance(other, PackedTensor):
        same = isinstance(one, PackedTensor) and isinstance(other, PackedTensor) and torch.equal(one.data, other.data)
    else:
        same = torch.equal(one, other)
    if not same:
        raise FormatError(
            f"the config ties '{name}' to '{original}', but the checkpoint holds different weights for them",
            where=checkpoint.path,
            hint="set tie_word_embeddings to false if both are meant",
        )


def _default_dtype(checkpoint: Checkpoint, own: torch.dtype, device: torch.device, kept: frozenset[str]) -> torch.dtype:
    if device.type != "cpu":
        return own
    available = available_memory()
    if available is None or _required_memory(checkpoint, torch.float32, kept) <= available:
        return torch.float32
    _log.warning("%s does not fit into memory as float32: it stays %s, which is slower", checkpoint.path, own)
    return own


def _check_fits(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, kept: frozenset[str]) -> None:
    needed = _required_memory(checkpoint, dtype, kept)
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if available is not None and needed > available:
        hint = "use a smaller model, or a quantised one"
        if dtype == torch.float32:
            hint = "load it as bfloat16, or use a smaller or quantised model"
        raise ResourceError(
            f"the model does not fit into memory: its weights take {format_bytes(needed)} as "
            f"{str(dtype).removeprefix('torch.')}, {format_bytes(available)} are free",
            where=checkpoint.path,
            hint=hint,
        )


def _fill(
    module: nn.Module,
    leaf: str,
    value: Tensor | PackedTensor,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    kept: frozenset[str],
) -> None:
    if isinstance(value, PackedTensor):
        if isinstance(module, Matrix) and leaf == "weight" and value.format in kept:
            module.load_packed(PackedTensor(value.data.to(device), value.format, value.shape))
            return
        value = FORMATS.load(value.format).unpack(value, dtype)
    if not value.is_floating_point():
        raise FormatError(f"tensor '{name}' holds {value.dtype}, no floating-point numbers")
    parameter = module.get_parameter(leaf)
    setattr(module, leaf, nn.Parameter(value.to(device=device, dtype=dtype), requires_grad=parameter.requires_grad))


def _kept_formats(checkpoint: Checkpoint, packed: bool | None, device: torch.device) -> frozenset[str]:
    """The block formats whose tensors are not unpacked."""
    formats = {info.format for info in checkpoint.tensors.values()} & set(FORMATS.names())
    if packed is None:
        return frozenset(name for name in formats if FORMATS.load(name).has_kernel(device))
    return frozenset(formats if packed else ())


def _open_folder(folder: Path) -> Checkpoint:
    # A folder as Meta releases it may hold a config.json too, which says what params.json does not.
    if _is_meta_folder(folder) and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        return _open_meta(folder)
    if (folder / CONFIG).exists():
        return text_part(HuggingFaceCheckpoint(folder))
    files = sorted(file for file in folder.iterdir() if file.is_file())
    llama2_c = [file for file in files if _is_llama2_c(file)]
    if len(llama2_c) == 1:
        return Llama2CCheckpoint(llama2_c[0])
    gguf = [file for file in files if _starts_with(file, b"GGUF") and not is_later_part(file)]
    if len(gguf) == 1:
        return _open_file(gguf[0])
    if gguf:
        names = ", ".join(f"'{file.name}'" for file in gguf)
        raise FormatError(f"the folder holds several GGUF files: {names}", where=folder, hint="name one of the files")
    for file in files:
        if (reason := _unreadable(file)) is not None:
            raise FormatError(f"'{file.name}' is {reason}, which is not readable yet", where=folder, hint=CONVERT)
    models = sorted(inner.parent for inner in folder.glob(f"*/{CONFIG}"))
    raise NotFoundError(
        f"there is no model in this folder: neither {CONFIG}, {PARAMS} nor a GGUF file"
        if files
        else "there is no model here",
        where=folder,
        hint="did you mean " + " or ".join(f"'{model}'" for model in models[:3]) + "?" if models else None,
    )


def _open_meta(folder: Path) -> Checkpoint:
    from camelid.checkpoint.meta import MetaCheckpoint
    from camelid.checkpoint.meta_folder import read_params
    from camelid.checkpoint.meta_llama4 import MetaLlama4Checkpoint, is_llama4
    from camelid.checkpoint.meta_vision import MetaVisionCheckpoint, reads_images

    params = read_params(folder)
    if is_llama4(params):
        return MetaLlama4Checkpoint(folder)
    return MetaVisionCheckpoint(folder) if reads_images(params) else MetaCheckpoint(folder)


def _open_file(file: Path) -> Checkpoint:
    if _starts_with(file, b"GGUF"):
        from camelid.checkpoint.gguf import GGUFCheckpoint

        return GGUFCheckpoint(file)
    if _is_llama2_c(file):
        return Llama2CCheckpoint(file)
    if _is_meta_folder(file.parent):
        raise FormatError("this is one file of a model", where=file, hint=f"open its folder: {file.parent}")
    if (reason := _unreadable(file)) is not None:
        raise FormatError(f"this is {reason}, which is not readable yet", where=file, hint=CONVERT)
    if (file.parent / CONFIG).exists():
        raise FormatError("this is one file of a model", where=file, hint=f"open its folder: {file.parent}")
    raise FormatError("this is no model file: it starts with none of the known marks", where=file)


def _unreadable(file: Path) -> str | None:
    """What a file of a format known by its first bytes is, if it is none that can be read."""
    with file.open("rb") as opened:
        head = opened.read(4)
    if head.startswith((MARK, *_PICKLES)):
        return f"a file of torch.save with no {PARAMS} beside it"
    if head.startswith(b"24ka"):
        return "a llama2.c checkpoint of a later version"
    if head.startswith((b"lmgg", b"fmgg", b"tjgg")):
        return "a file of GGUF's predecessors"
    return None


def _is_llama2_c(file: Path) -> bool:
    with file.open("rb") as opened:
        return is_llama2_c(opened.read(HEADER.size), file.stat().st_size)


def _is_meta_folder(folder: Path) -> bool:
    """Looks first and imports then: reading pickles safely is a lot of code that most models have no need of."""
    if not (folder / PARAMS).is_file():
        return False
    from camelid.checkpoint.meta_folder import is_meta_folder

    return is_meta_folder(folder)


def _starts_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(mark)) == mark


def _some(names: Collection[str]) -> str:
    """The first names of a list that may be long."""
    first = [f"'{name}'" for name in list(names)[:3]]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
