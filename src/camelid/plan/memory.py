"""What training holds in memory, found by running the model's own code on tensors that have shapes but no contents.

Shape suffixes: T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from camelid.model import ARCHITECTURES
from camelid.model.attention import PackedContext
from camelid.plan.workload import sequence_lengths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from camelid.model.config import ModelConfig
    from camelid.plan.workload import Workload

FLOAT32 = 4
CPU_PROGRAM = 330 << 20
"""Bytes of the interpreter with torch and the trainer before there is a model."""
CPU_FRAGMENTATION = 0.3
"""Of what lives, what the C library's heap holds besides: measured, docs/explanation/planning.md."""
ACCELERATOR_PROGRAM = 1 << 30
"""Bytes of an accelerator's context and libraries: about a GiB with torch and CUDA."""
MOST_SEQUENCES = 64
"""That are traced: what is kept grows with the tokens alone."""
TINY_VOCAB = 256
"""Of the model that is traced: what depends on the vocabulary is added by hand."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, each part at its largest."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass leaves for the backward pass."""
    workspace: int
    """What lives only inside one block's backward pass."""
    output_chunk: int
    """Logits of one chunk, and the hidden states' gradient."""
    program: int
    """The interpreter, torch and their libraries, or an accelerator's context."""
    fragmentation: int
    """Freed memory that the heap keeps; on an accelerator it is in the share of its memory that is not planned with."""
    peak: int
    """The most that is taken at once. Less than the parts together: gradients grow while activations go."""


@dataclass(frozen=True)
class Layers:
    """Bytes and parameters that every further layer adds, and what there is without any."""

    parameters: int
    matrix_parameters: int
    """Of them, in matrices."""
    kept: int
    """Activations that a layer keeps for its backward pass."""
    typed: int
    """The copy of a layer's matrices in another dtype than float32, which autocast keeps as long."""
    kept_outside: int
    """The same of what is not a layer: the last norm, the rotation."""
    workspace: int
    """Activations beyond those that live while a layer's backward pass runs."""


def trace_layers(config: ModelConfig, workload: Workload, num_rows: int, dtype: torch.dtype) -> Layers:
    """Run models of one and of two layers forward and backward without data, and take the difference.

    Takes a fraction of a second whatever the size. Traced on a CPU: an accelerator's attention keeps the same tensors.

    Args:
        config: the model's shape.
        workload: whose rows they are.
        num_rows: of one device.
        dtype: of the matrix products.
    """
    rows = num_rows
    if workload.document_length is not None:  # every document is an operation of its own
        rows = min(rows, max(1, round(MOST_SEQUENCES * workload.document_length / workload.sequence_length)))
    lengths = sequence_lengths(rows, workload.sequence_length, workload.document_length)
    one, two = (_trace(config, layers, lengths, dtype) for layers in (1, 2))
    matrix_parameters = two.matrix_parameters - one.matrix_parameters
    # autocast keeps one typed copy of every matrix, however many tokens there are.
    typed = 0 if dtype == torch.float32 else matrix_parameters * dtype.itemsize
    scale = num_rows / rows
    kept, kept_by_one = two.kept - one.kept - typed, one.kept - typed
    return Layers(
        parameters=two.parameters - one.parameters,
        matrix_parameters=matrix_parameters,
        kept=round(scale * kept),
        typed=typed,
        kept_outside=round(scale * (kept_by_one - kept)),
        workspace=round(scale * max(0, one.peak - one.kept)),
    )


def plan_memory(
    config: ModelConfig, workload: Workload, dtype: torch.dtype, *, on_cpu: bool, num_devices: int = 1
) -> MemoryPlan:
    """Memory of one device.

    Several devices share weights, gradients and optimizer state evenly and gather one layer at a time (ZeRO stage 3,
    Rajbhandari et al. 2020, arXiv 1910.02054, §5; torch's FSDP2).

    Args:
        config: the model's shape.
        workload: what is trained on.
        dtype: of the matrix products.
        on_cpu: whether the device is one.
        num_devices: how many share the model.
    """
    element = dtype.itemsize
    parameters, depth = config.num_parameters, config.num_hidden_layers
    embedding = config.vocab_size * config.hidden_size
    num_rows = -(-workload.batch_size // num_devices)
    num_tokens = num_rows * workload.sequence_length
    layers = trace_layers(config, workload, num_rows, dtype)
    states = 2 * parameters
    if workload.optimizer == "muon":
        states -= depth * layers.matrix_parameters  # one momentum in place of two moments
    weights, gradients, optimizer = (-(-FLOAT32 * n // num_devices) for n in (parameters, parameters, states))
    kept, workspace = layers.kept, layers.workspace
    if workload.activation_checkpointing:
        kept, workspace = num_tokens * config.hidden_size * element, workspace + layers.kept
    if num_devices > 1:
        workspace += 2 * layers.parameters * (element + FLOAT32)  # this layer's and the next one's, with a gradient
    elif not workload.activation_checkpointing:
        kept += layers.typed
    activations = layers.kept_outside + depth * kept
    output_gradient = FLOAT32 * embedding
    hidden_gradient = num_tokens * config.hidden_size * FLOAT32
    chunk_tokens = min(workload.chunk_tokens, num_tokens)
    # In another dtype than float32 there is the product in it, its float32 copy and the gradient, and the typed matrix.
    chunk = chunk_tokens * config.vocab_size * (FLOAT32 if element == FLOAT32 else FLOAT32 + 2 * element)
    typed = 0 if element == FLOAT32 else embedding * element
    fixed = weights + optimizer
    before = gradients if workload.accumulation > 1 else 0
    head = before + activations + output_gradient + hidden_gradient + chunk + typed
    first = before + activations + output_gradient + hidden_gradient + workspace
    # A tied embedding's own gradient is dense, and is added to the output matrix's at the very end.
    last = gradients + layers.kept_outside + kept + workspace
    lookup = gradients + output_gradient + layers.kept_outside + hidden_gradient
    alive = fixed + max(head, first, last, lookup)
    program = CPU_PROGRAM if on_cpu else ACCELERATOR_PROGRAM
    fragmentation = round(CPU_FRAGMENTATION * alive) if on_cpu else 0
    return MemoryPlan(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        workspace=workspace,
        output_chunk=chunk + typed + hidden_gradient,
        program=program,
        fragmentation=fragmentation,
        peak=program + alive + fragmentation,
    )


@dataclass(frozen=True)
class _Trace:
    parameters: int
    matrix_parameters: int
    kept: int
    peak: int


def _trace(config: ModelConfig, num_layers: int, lengths: tuple[int, ...], dtype: torch.dtype) -> _Trace:
    small = replace(config, num_hidden_layers=num_layers, vocab_size=TINY_VOCAB)  # type: ignore[type-var]
    with FakeTensorMode():
        model = ARCHITECTURES.load(config.model_type).from_config(small)
        ids_T = torch.zeros(sum(lengths), dtype=torch.int64)
        context = PackedContext(lengths)
        positions_T = context.positions()
        parameters = list(model.parameters())
        with LiveBytes(parameters) as live:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                hidden_TE = model(ids_T, positions_T, context)
            kept = live.now
            hidden_TE.sum().backward()
    return _Trace(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.ndim > 1), kept, live.peak)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators make while they live.

    Args:
        given: tensors that are not counted.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        # Held here, so that no other storage gets the address of one of these.
        self._given = [tensor.untyped_storage() for tensor in given]
        self._alive: dict[int, object] = {id(storage): storage for storage in self._given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def forget(_: object) -> None:
            self.now -= num_bytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, forget)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
