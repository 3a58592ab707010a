"""Low-rank adapters (LoRA): y = W·x + s·B·A·x, around any weight format, many of them in one batch.

The layout of a folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors`. Hu et al. 2021, arXiv
2106.09685, §4.1; rank-stabilised scaling: Kalajdzievski 2023, arXiv 2312.03732.

Shape suffixes: T tokens of all sequences end to end, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from camelid.base.errors import ConfigError, EngineError, FormatError, NotFoundError, did_you_mean
from camelid.base.files import atomic_file, atomic_folder, existing_file
from camelid.kernels import product
from camelid.model.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from camelid.codecs.packed import PackedTensor

PREFIX, SUFFIX_A, SUFFIX_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""Around a module's path in the names of an `adapter_model.safetensors`."""

HONOURED = {"r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type"}
"""Keys of an `adapter_config.json` that are read."""

HARMLESS = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "exclude_modules",
    "lora_dropout",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
}
"""Keys that matter to training, or say what the tensors' names say as well. Any other that is set is refused."""


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter changes, and how strongly.

    Args:
        rank: R, unless `ranks` says otherwise.
        alpha: s is alpha / R, or alpha / √R with `rank_stabilised`.
        targets: the last parts of the paths of the projections that it changes.
        rank_stabilised: see `alpha`.
        alphas: pattern of a path's end → its alpha, where that is another (PEFT's `alpha_pattern`).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rank_stabilised: bool = False
    alphas: tuple[tuple[str, float], ...] = ()

    def scale(self, path: str, rank: int) -> float:
        """s of one projection."""
        alpha = next((value for key, value in self.alphas if re.match(rf"(.*\.)?({key})$", path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


class LowRank(nn.Module):
    """The change of one projection."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(a_RI)
        self.b = nn.Parameter(b_OR)
        self.scale = scale

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] → [T, O]."""
        return product.linear(product.linear(x_TI, self.a.to(x_TI.dtype)), self.b.to(x_TI.dtype)) * self.scale

    def change(self) -> Tensor:
        """s·B·A, fp32 [O, I]."""
        return (self.b.detach().float() @ self.a.detach().float()) * self.scale


class LoraAdapter(nn.Module):
    """The changes that one adapter makes, by the path of the projection in the model."""

    def __init__(self, config: LoraConfig, changes: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.config = config
        self._modules_by_path = nn.ModuleDict({path.replace(".", "/"): module for path, module in changes.items()})

    @property
    def changes(self) -> dict[str, LowRank]:
        """Path → change."""
        return {
            path.replace("/", "."): module
            for path, module in self._modules_by_path.items()
            if isinstance(module, LowRank)
        }

    @classmethod
    def new(cls, model: nn.Module, config: LoraConfig, *, seed: int = 0) -> LoraAdapter:
        """An adapter that changes nothing yet: A is random, B is zero (Hu et al. 2021, §4.1).

        Raises:
            ConfigError: the model has no such projections.
        """
        generator = torch.Generator().manual_seed(seed)
        changes: dict[str, LowRank] = {}
        for path, linear in _linears(model).items():
            if path.rpartition(".")[2] in config.targets:
                num_out, num_in = linear.shape
                a_RI = torch.empty(config.rank, num_in).uniform_(-1, 1, generator=generator) / math.sqrt(num_in)
                changes[path] = LowRank(a_RI, torch.zeros(num_out, config.rank), config.scale(path, config.rank))
        if not changes:
            raise ConfigError(
                f"the model has none of the projections {', '.join(config.targets)}",
                hint="known: " + ", ".join(sorted({path.rpartition(".")[2] for path in _linears(model)})),
            )
        return cls(config, changes)

    @classmethod
    def open(cls, folder: Path) -> LoraAdapter:
        """Read PEFT's folder.

        Raises:
            NotFoundError: a file is missing.
            FormatError: a file is broken, or tensors do not belong together.
            ConfigError: the adapter is of a kind that is not supported.
        """
        config_path = existing_file(folder / "adapter_config.json")
        try:
            settings = json.loads(config_path.read_bytes())
        except ValueError as error:
            raise FormatError(f"this is no JSON: {error}", where=config_path) from error
        config = _read_config(settings, config_path)
        weights_path = existing_file(folder / "adapter_model.safetensors")
        try:
            tensors = load_file(weights_path)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"this is no safetensors file: {error}", where=weights_path) from error
        return cls(config, _read_changes(tensors, config, weights_path))

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model whose projections these are not.

        Raises:
            EngineError: one is missing, or of another shape.
        """
        linears = _linears(model)
        for path, change in self.changes.items():
            _target(linears, path, change)

    def digest(self) -> str:
        """A digest of all that it changes."""
        digest = sha256()
        for path, change in sorted(self.changes.items()):
            digest.update(f"{path} {change.scale!r} {list(change.a.shape)} {change.a.dtype}\n".encode())
            for half in (change.a, change.b):
                digest.update(half.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write PEFT's folder, whole or not at all."""
        config = self.config
        ranks = {path: len(change.a) for path, change in self.changes.items()}
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "target_modules": sorted({path.rpartition(".")[2] for path in ranks}),
            "use_rslora": config.rank_stabilised,
            "rank_pattern": {path: rank for path, rank in ranks.items() if rank != config.rank},
            "alpha_pattern": dict(config.alphas),
            "bias": "none",
            "inference_mode": True,
        }
        tensors = {}
        for path, change in self.changes.items():
            tensors[f"{PREFIX}{path}{SUFFIX_A}"] = change.a.detach().cpu().contiguous()
            tensors[f"{PREFIX}{path}{SUFFIX_B}"] = change.b.detach().cpu().contiguous()
        with atomic_folder(folder) as new:
            (new / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
            with atomic_file(new / "adapter_model.safetensors") as file:
                file.write(save(tensors, metadata={"format": "pt"}))


class Adapters:
    """The adapters of a model that runs: added and removed by name, each applied to its own tokens.

        adapters = Adapters(model)
        adapters.add("pirate", LoraAdapter.open(folder))
        with adapters.applied([("pirate", 5), (None, 3)]):  # the first five tokens; the other three as the model is
            model(ids_T, positions_T, context)

    A projection that no adapter changes costs nothing. The model's own tensors and their names stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._linears = _linears(model)
        self._by_name: dict[str, dict[str, LowRank]] = {}
        self._identities: dict[str, str] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._applied: list[tuple[str, slice | Tensor]] = []

    @property
    def names(self) -> Collection[str]:
        """Those that can be applied."""
        return self._by_name.keys()

    def identity(self, name: str | None) -> str:
        """A digest of what an adapter changes; empty for none.

        Raises:
            NotFoundError: there is no such adapter.
        """
        if name is None:
            return ""
        if name not in self._identities:
            raise NotFoundError(f"there is no adapter named '{name}'", hint=did_you_mean(name, self._by_name))
        return self._identities[name]

    def add(self, name: str, adapter: LoraAdapter) -> None:
        """Make an adapter known; it is moved to the model's device.

        Raises:
            EngineError: the name is taken, or the adapter does not fit the model.
        """
        if name in self._by_name:
            raise EngineError(f"there is an adapter named '{name}' already", hint="remove it first")
        changes = adapter.changes
        linears = {path: _target(self._linears, path, change) for path, change in changes.items()}
        for path, linear in linears.items():
            changes[path].to(_device(linear))
            if path not in self._hooks:
                self._hooks[path] = linear.register_forward_hook(self._hook(path))
        self._by_name[name] = changes
        self._identities[name] = adapter.digest()

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            NotFoundError: there is no such adapter.
        """
        self.identity(name)
        del self._by_name[name], self._identities[name]
        needed = {path for changes in self._by_name.values() for path in changes}
        for path in self._hooks.keys() - needed:
            self._hooks.pop(path).remove()

    @contextmanager
    def applied(self, spans: Sequence[tuple[str | None, int]]) -> Iterator[None]:
        """Apply adapters to the tokens of the next forward passes.

        Args:
            spans: adapters' names, None for none, and how many tokens each, end to end.
        """
        rows: dict[str, list[tuple[int, int]]] = {}
        start = 0
        for name, length in spans:
            if name is not None:
                rows.setdefault(name, []).append((start, start + length))
            start += length
        self._applied = [(name, _rows(pieces)) for name, pieces in rows.items()]
        try:
            yield
        finally:
            self._applied = []

    def _hook(self, path: str) -> Any:
        def change(linear: Linear, inputs: tuple[Tensor], out_TO: Tensor) -> Tensor:
            for name, rows in self._applied:
                low_rank = self._by_name[name].get(path)
                if low_rank is not None:
                    out_TO[rows] += low_rank(inputs[0][rows])
            return out_TO

        return change


class Merged:
    """An adapter merged into a model's weights, which can be taken out again to the same bits.

    Packed weights become dense in fp32 while merged: their blocks could not hold the change.
    """

    def __init__(self, model: nn.Module, adapter: LoraAdapter) -> None:
        """Merge.

        Raises:
            EngineError: the adapter does not fit the model; nothing is changed then.
        """
        linears = _linears(model)
        targets = [(_target(linears, path, change), change) for path, change in adapter.changes.items()]
        self._originals: list[tuple[Linear, Tensor | PackedTensor]] = []
        with torch.no_grad():
            for linear, change in targets:
                if linear.packed is not None:
                    self._originals.append((linear, linear.packed))
                    linear.load_dense(linear.dense() + change.change().to(_device(linear)))
                else:
                    assert linear.weight is not None
                    self._originals.append((linear, linear.weight.detach().clone()))
                    linear.weight.add_(change.change().to(linear.weight))

    def undo(self) -> None:
        """Put the original weights back."""
        with torch.no_grad():
            for linear, original in self._originals:
                if isinstance(original, torch.Tensor):
                    assert linear.weight is not None
                    linear.weight.copy_(original)
                else:
                    linear.load_packed(original)
        self._originals = []


def _linears(model: nn.Module) -> dict[str, Linear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Linear)}


def _device(linear: Linear) -> torch.device:
    weight = linear.weight if linear.packed is None else linear.packed.data
    assert weight is not None
    return weight.device


def _target(linears: Mapping[str, Linear], path: str, change: LowRank) -> Linear:
    linear = linears.get(path)
    if linear is None or path == "lm_head":
        hint = "only projections inside the blocks can be changed" if linear else did_you_mean(path, linears)
        raise EngineError(f"the model has no projection '{path}' that an adapter can change", hint=hint)
    shape = (len(change.b), change.a.shape[1])
    if shape != linear.shape:
        raise EngineError(
            f"the adapter changes a matrix {list(shape)} where the model has {list(linear.shape)}", where=path
        )
    return linear


def _rows(pieces: list[tuple[int, int]]) -> slice | Tensor:
    if all(end == start for (_, end), (start, _) in pairwise(pieces)):
        return slice(pieces[0][0], pieces[-1][1])
    return torch.cat([torch.arange(start, end) for start, end in pieces])


def _read_config(settings: object, where: Path) -> LoraConfig:
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise ConfigError(f"this is no LoRA adapter but {kind!r}", where=where)
    if settings.get("bias", "none") != "none":
        raise ConfigError("adapters that change biases are not supported", where=where)
    for key in settings.keys() - HONOURED - HARMLESS - {"bias"}:
        if settings[key]:
            raise ConfigError(f"{key} = {settings[key]!r} changes the mathematics and is not supported", where=where)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    is_scale = isinstance(alpha, int | float) and math.isfinite(alpha)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not is_scale:
        raise ConfigError(f"r = {rank!r} and lora_alpha = {alpha!r} do not make a scale", where=where)
    targets = settings.get("target_modules") or ()
    return LoraConfig(
        rank=rank,
        alpha=float(alpha),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        rank_stabilised=bool(settings.get("use_rslora")),
        alphas=tuple((settings.get("alpha_pattern") or {}).items()),
    )


def _read_changes(tensors: Mapping[str, Tensor], config: LoraConfig, where: Path) -> dict[str, LowRank]:
    changes: dict[str, LowRank] = {}
    for name, a_RI in tensors.items():
        if name.endswith(SUFFIX_B) and name.removesuffix(SUFFIX_B) + SUFFIX_A in tensors:
            continue
        path = name.removeprefix(PREFIX).removesuffix(SUFFIX_A)
        b_OR = tensors.get(f"{PREFIX}{path}{SUFFIX_B}")
        if not name.startswith(PREFIX) or b_OR is None or a_RI.ndim != 2 or b_OR.ndim != 2:
            raise FormatError(f"the tensor '{name}' is no half of a low-rank change", where=where)
        if len(a_RI) != b_OR.shape[1]:
            raise FormatError(f"the ranks of '{path}' are {len(a_RI)} and {b_OR.shape[1]}", where=where)
        changes[path] = LowRank(a_RI, b_OR, config.scale(path, len(a_RI)))
    if not changes:
        raise FormatError("there are no tensors in this adapter", where=where)
    return changes
