"""A plan as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.files import format_bytes
from camelid.plan.devices import DEVICES, USABLE_SHARE

if TYPE_CHECKING:
    from camelid.plan.training import TrainingPlan

BUSY = 1.5
"""Load per thread from which the time is said to be that of a busy machine."""
FAR_FROM_OPTIMUM = 3.0
"""Factor between tokens per parameter and Chinchilla's, either way, from which it is remarked on."""


def show(plan: TrainingPlan) -> str:
    """The figures by topic, then what to think of them."""
    memory, workload = plan.memory, plan.workload
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"{workload.optimizer} state": memory.optimizer,
        "activations": memory.activations,
        "one block's backward pass": memory.workspace,
        "output chunk": memory.output_chunk,
        "program": memory.program,
        "fragmentation": memory.fragmentation,
    }
    rows = [
        ("device", f"{plan.num_devices} × {plan.device}" if plan.num_devices > 1 else plan.device),
        ("parameters", f"{plan.parameters:,}"),
        ("tokens", f"{plan.tokens:,} in {workload.steps:,} steps, {plan.tokens_per_parameter:.3g} per parameter"),
        ("arithmetic", f"{plan.flops_per_token:.3g} FLOPs per token, {plan.flops:.3g} in all"),
        ("time", f"{duration(plan.seconds)}: {plan.seconds_per_step:.3g} s per step, {_rate(plan)}"),
        ("time from", _basis(plan)),
        ("memory", _memory(plan)),
        *((f"  {name}", format_bytes(size)) for name, size in parts.items() if size),
        ("checkpoints", f"{format_bytes(plan.checkpoint_bytes)} each, up to {format_bytes(plan.disk_bytes)} on disk"),
    ]
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.2f} at {workload.price_per_hour:g} per device and hour"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{name:<{width}}  {value}" for name, value in rows] + [f"\n{r}" for r in remarks(plan)])


def remarks(plan: TrainingPlan) -> list[str]:
    """What a reader of the figures should know before the run."""
    from camelid.plan.training import CHINCHILLA_TOKENS

    found = []
    if not plan.fits:
        assert plan.device_memory is not None
        found.append(
            f"It does not fit: {format_bytes(plan.memory.peak)} of {format_bytes(plan.device_memory)}. "
            f"Try {_less_memory(plan)}."
        )
    ratio = plan.tokens_per_parameter / CHINCHILLA_TOKENS
    if not 1 / FAR_FROM_OPTIMUM <= ratio <= FAR_FROM_OPTIMUM:
        better = "a smaller model on more tokens" if ratio < 1 else "a larger model on fewer tokens"
        found.append(
            f"{plan.tokens_per_parameter:.3g} tokens per parameter; about {CHINCHILLA_TOKENS} make the best of a "
            f"compute budget (Hoffmann et al. 2022), so {better} would reach a lower loss for the same arithmetic. "
            "That says nothing of fine-tuning, nor of a model that must be small to be used."
        )
    time = plan.measured
    if plan.launch_bound:
        found.append("The model is so small that starting its operations takes longer than their arithmetic.")
    if time is not None and time.load is not None and time.load > BUSY * time.num_threads:
        found.append(
            f"The machine was busy: load {time.load:.1f} on {time.num_threads} threads. Alone, the run will be faster."
        )
    return found


def duration(seconds: float) -> str:
    """Seconds as people say them: "3.2 days", "2.1 hours", "14 minutes", "8.5 s"."""
    for name, size in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def _rate(plan: TrainingPlan) -> str:
    rate = plan.tokens_per_second
    return f"{rate:,.0f} tokens/s" if rate >= 10 else f"{rate:.2g} tokens/s"


def _basis(plan: TrainingPlan) -> str:
    time = plan.measured
    if time is None:
        source = DEVICES[plan.device].source
        return f"an assumption: {plan.assumed_mfu:.0%} of the FLOP/s in the {source}"
    load = "" if time.load is None else f", load {time.load:.1f}"
    stand_in = "" if time.same_shape else " of a smaller shape, scaled by FLOPs"
    return f"one block{stand_in} run here on {time.probed_tokens:,} tokens, {time.num_threads} threads{load}"


def _memory(plan: TrainingPlan) -> str:
    each = " on each device" if plan.num_devices > 1 else ""
    if plan.device_memory is None:
        return f"{format_bytes(plan.memory.peak)} at the peak{each}"
    share = f" ({USABLE_SHARE:.0%} of it)" if plan.measured is None else ""
    return f"{format_bytes(plan.memory.peak)} at the peak{each}, of {format_bytes(plan.device_memory)} free{share}"


def _less_memory(plan: TrainingPlan) -> str:
    """The settings that still could make it smaller, the cheapest first."""
    workload, memory = plan.workload, plan.memory
    states = memory.weights + memory.gradients + memory.optimizer
    assert plan.device_memory is not None
    if states > plan.device_memory:
        fewest = -(-states * plan.num_devices // plan.device_memory)
        return f"a smaller model: weights, gradients and optimizer state alone need {fewest:,} such devices"
    ways = []
    if workload.batch_size > plan.num_devices:
        ways.append("a smaller batch_size with more accumulation")
    if not workload.activation_checkpointing:
        ways.append("activation_checkpointing")
    return " or ".join([*ways, "a shorter sequence_length"])
