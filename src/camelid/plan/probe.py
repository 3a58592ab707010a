"""How long a training step takes here, found by running one block of the very shape for a second or two.

Shape suffixes: T tokens, C tokens of one chunk, E hidden size, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from camelid.base.runtime import available_memory
from camelid.kernels.elementwise import softmax_shares
from camelid.kernels.product import product
from camelid.model import ARCHITECTURES
from camelid.model.attention import PackedContext
from camelid.model.presets import PRESETS
from camelid.plan.workload import mean_seen, sequence_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from camelid.model.base import LanguageModel
    from camelid.model.config import ModelConfig
    from camelid.plan.workload import Workload

BLOCK_SECONDS = 1.2
OTHER_SECONDS = 0.3
"""Budgets for the blocks, and for each of the other parts."""
MOST_ROUNDS = 9
FEWEST_ROUNDS = 3
"""Repetitions, of which the median is taken."""
MOST_BYTES = 1 << 30
"""That any part of the probe takes, or an eighth of the free memory if that is less."""
MOST_UPDATED = 8 << 20
"""Parameters that AdamW is timed on: with gradient and state past any cache."""
NEWTON_SCHULZ_STEPS = 5
"""Of Muon."""
PROBE_VOCAB = 256
FEWEST_TOKENS = 128
TRIAL_TOKENS = 256
"""That the first, untimed pass takes at most: its speed decides how many the timed ones take."""
STAND_IN = PRESETS["stories110m"].config
"""Timed in place of a shape whose block is too large to try."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one update here, by part, and what the machine was doing meanwhile."""

    blocks: float
    output_layer: float
    """With the loss and the embedding's gradient."""
    update: float
    """Clipping and the optimizer."""
    load: float | None
    """Processes that wanted a core, averaged over the last minute; None: the system does not say."""
    num_threads: int
    probed_tokens: int
    """Tokens that the blocks were timed on."""
    same_shape: bool
    """False: a block of this shape was too large to try, and a smaller one stood in, scaled by FLOPs."""

    @property
    def total(self) -> float:
        """Seconds of one update."""
        return self.blocks + self.output_layer + self.update


def probe_step(config: ModelConfig, workload: Workload, device: torch.device, dtype: torch.dtype) -> StepTime:
    """Time the parts of a step and add them up; takes seconds whatever the model's size.

    Args:
        config: the model's shape.
        workload: the step's size.
        device: one that is here.
        dtype: of the matrix products.
    """
    most_bytes = min(MOST_BYTES, (available_memory() or 8 * MOST_BYTES) // 8)
    # Weights and gradients of two layers and of one.
    same_shape = 6 * 4 * _layer_parameters(config) <= most_bytes
    probed = replace(cast("Any", config if same_shape else STAND_IN), vocab_size=PROBE_VOCAB)
    clock = _Clock(device)
    blocks, probed_tokens, flops = _blocks(config, probed, workload, clock, dtype, most_bytes)
    return StepTime(
        blocks=blocks * workload.accumulation,
        output_layer=_output_layer(config, workload, clock, dtype, most_bytes, flops) * workload.accumulation,
        update=_update(config, probed, workload, clock, most_bytes),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        num_threads=torch.get_num_threads(),
        probed_tokens=probed_tokens,
        same_shape=same_shape,
    )


class _Clock:
    """Times functions in turn, so that what else the machine does falls on all of them alike."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def medians(self, budget: float, *works: Callable[[], object]) -> list[float]:
        """Median seconds of each, after a call of each that is not counted."""
        for work in works:
            self.once(work)
        rounds: list[list[float]] = []
        begin = time.perf_counter()
        while len(rounds) < FEWEST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - begin < budget):
            rounds.append([self.once(work) for work in works])
        return [median(column) for column in zip(*rounds, strict=True)]


def _blocks(
    config: ModelConfig, probed: Any, workload: Workload, clock: _Clock, dtype: torch.dtype, most_bytes: int
) -> tuple[float, int, float]:
    """Seconds of all layers, forward and backward, on one batch; tokens that they were probed with; FLOP/s meanwhile.

    Models of one layer and of two are timed in turn. The first layer's time has the last norm and the rotation in it;
    every further layer costs the difference.
    """
    device = clock.device
    one, two = (_model(replace(probed, num_hidden_layers=layers), device) for layers in (1, 2))
    trial = _lengths(workload, TRIAL_TOKENS)
    clock.once(lambda: _forward_backward(one, trial, device, dtype))
    speed = _layer_flops(probed, trial) / clock.once(lambda: _forward_backward(one, trial, device, dtype))
    seconds_of_pass = BLOCK_SECONDS / (FEWEST_ROUNDS + 1) / 3
    flops_per_token = _layer_flops(probed, trial) / sum(trial)
    # What a token keeps in two layers is a few times their widest activation, and below a hundred times E.
    affordable = most_bytes // (2 * 100 * 4 * probed.hidden_size)
    num_tokens = min(int(speed * seconds_of_pass / flops_per_token), affordable)
    lengths = _lengths(workload, max(FEWEST_TOKENS, num_tokens))
    first, both = clock.medians(
        BLOCK_SECONDS,
        lambda: _forward_backward(one, lengths, device, dtype),
        lambda: _forward_backward(two, lengths, device, dtype),
    )
    further = min(max(both - first, first / 2), first)
    scale = _layer_flops(config, _lengths(workload)) / _layer_flops(probed, lengths)
    # Computing the forward pass again adds a third: backward costs twice as much.
    again = 4 / 3 if workload.activation_checkpointing else 1
    seconds = (first + (config.num_hidden_layers - 1) * further) * scale * again
    return seconds, sum(lengths), _layer_flops(probed, lengths) / further


def _output_layer(
    config: ModelConfig, workload: Workload, clock: _Clock, dtype: torch.dtype, most_bytes: int, flops: float
) -> float:
    """Seconds of the loss, chunk by chunk, and of the embedding's dense gradient, on one batch."""
    device, hidden_size = clock.device, config.hidden_size
    num_tokens = workload.batch_tokens
    chunk_tokens = min(workload.chunk_tokens, num_tokens)
    # Matrix, its gradient, the embedding's gradient, and a chunk's logits with their product.
    by_bytes = most_bytes // (4 * (3 * hidden_size + 2 * chunk_tokens))
    by_time = int(flops * OTHER_SECONDS / (6 * hidden_size * chunk_tokens))
    vocab_size = min(config.vocab_size, max(PROBE_VOCAB, min(by_bytes, by_time)))
    output_VE = _filled((vocab_size, hidden_size), device).requires_grad_()
    hidden_CE = _filled((chunk_tokens, hidden_size), device).to(dtype)
    typed_VE = output_VE.detach().to(dtype)
    gradient_VE = torch.zeros_like(typed_VE)
    space_CV = torch.empty(chunk_tokens, vocab_size, dtype=dtype, device=device)
    targets_C1 = torch.randint(vocab_size, (chunk_tokens, 1), device=device)

    def chunk() -> None:
        """The operations of the trainer's loss, which this room may not import, in its order."""
        logits_CV = product(hidden_CE, typed_VE.T, out_MN=space_CV).float()
        logits_CV.gather(1, targets_C1)
        total_C, _ = softmax_shares(logits_CV)
        grad_CV = logits_CV.scatter_add_(1, targets_C1, -total_C[:, None]).to(dtype)
        product(grad_CV, typed_VE)
        product(grad_CV.T, hidden_CE, out_MN=gradient_VE, add=True)

    num_ids = min(num_tokens, max(1, most_bytes // (64 * hidden_size)))
    ids_T = torch.randint(vocab_size, (num_ids,), device=device)

    def lookup() -> None:
        """Twice where the output matrix is tied: the second gradient is added to the first."""
        output_VE.grad = gradient_VE.float() if config.tie_word_embeddings else None
        cast("Any", F.embedding(ids_T, output_VE).sum()).backward()

    chunk_seconds, lookup_seconds = clock.medians(OTHER_SECONDS, chunk, lookup)
    num_chunks = num_tokens * workload.target_share / chunk_tokens
    return (chunk_seconds * num_chunks + lookup_seconds) * config.vocab_size / vocab_size


def _update(config: ModelConfig, probed: Any, workload: Workload, clock: _Clock, most_bytes: int) -> float:
    """Seconds of clipping all gradients and of the optimizer's step."""
    device, num_parameters = clock.device, config.num_parameters
    num_timed = min(num_parameters, MOST_UPDATED, most_bytes // 16)
    parameter = nn.Parameter(_filled((num_timed,), device))
    parameter.grad = torch.full_like(parameter, 1e-3)
    adamw = torch.optim.AdamW([parameter], lr=1e-6, fused=True)
    clip, step = clock.medians(OTHER_SECONDS, lambda: nn.utils.clip_grad_norm_([parameter], 1.0), adamw.step)
    if workload.optimizer == "adamw":
        return (clip + step) * num_parameters / num_timed
    layer = [p for p in _layers(_model(replace(probed, num_hidden_layers=1), device)).parameters() if p.ndim == 2]
    (one_layer,) = clock.medians(OTHER_SECONDS, _orthogonaliser(layer))
    in_layers = config.num_hidden_layers * _layer_parameters(config)
    scale = in_layers / sum(p.numel() for p in layer)
    return clip * num_parameters / num_timed + step * (num_parameters - in_layers) / num_timed + one_layer * scale


def _orthogonaliser(layer: Sequence[torch.Tensor]) -> Callable[[], None]:
    """The operations of the trainer's Muon on one layer's matrices, which this room may not import, in its order."""
    shapes = Counter(tuple(sorted(p.shape)) for p in layer)
    dtype = torch.float32 if layer[0].device.type == "cpu" else torch.bfloat16
    wide = [_filled((count, *shape), layer[0].device).to(dtype) for shape, count in shapes.items()]

    def update() -> None:
        for x_BMN in wide:
            for _ in range(NEWTON_SCHULZ_STEPS):
                gram_BMM = x_BMN @ x_BMN.mT
                pull_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM)
                torch.baddbmm(x_BMN, pull_BMM, x_BMN)

    return update


def _forward_backward(model: LanguageModel, lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
    model.zero_grad(set_to_none=True)
    ids_T = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
    context = PackedContext(lengths, device)
    positions_T = context.positions(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden_TE = model(ids_T, positions_T, context)
    cast("Any", hidden_TE).backward(torch.ones_like(hidden_TE))


def _lengths(workload: Workload, most_tokens: int | None = None) -> tuple[int, ...]:
    """The sequences of a batch, or of as much of it as has so many tokens: whole rows if it can be."""
    rows, row_length = workload.batch_size, workload.sequence_length
    if most_tokens is not None:
        rows, row_length = max(1, min(rows, most_tokens // row_length)), min(row_length, most_tokens)
    return sequence_lengths(rows, row_length, workload.document_length)


def _layer_flops(config: ModelConfig, lengths: tuple[int, ...]) -> float:
    """FLOPs of one layer's training on these sequences, as `camelid.plan.flops` counts them."""
    width = config.num_attention_heads * config.head_dim
    return sum(lengths) * 6 * (_layer_parameters(config) + mean_seen(lengths) * width)


def _layer_parameters(config: Any) -> int:
    one, two = (replace(config, num_hidden_layers=layers).num_parameters for layers in (1, 2))
    return int(two - one)


def _model(config: Any, device: torch.device) -> LanguageModel:
    with device:
        model = ARCHITECTURES.load(config.model_type).from_config(config)
    for parameter in model.parameters():
        # Values as small as weights: neither zeros nor denormal numbers, which processors add at another speed.
        nn.init.uniform_(parameter, -0.02, 0.02)
    return model


def _layers(model: nn.Module) -> nn.Module:
    """The outermost module list, which holds the layers."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def _filled(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.empty(shape, device=device).uniform_(-0.02, 0.02)
