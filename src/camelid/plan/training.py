"""A training run's plan: tokens, arithmetic, memory, time, disk and cost.

plan = plan_training(PRESETS["stories15m"].config, Workload(steps=1000, batch_size=8, sequence_length=256))
print(plan.text())
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from camelid.base.errors import ConfigError, did_you_mean
from camelid.plan.devices import ASSUMED_MFU, DEVICES, LAUNCH_SECONDS, USABLE_SHARE
from camelid.plan.flops import training_flops_per_token
from camelid.plan.workload import mean_seen, sequence_lengths

if TYPE_CHECKING:
    import torch

    from camelid.model.config import ModelConfig
    from camelid.plan.devices import Device
    from camelid.plan.memory import MemoryPlan
    from camelid.plan.probe import StepTime
    from camelid.plan.workload import Workload

CHINCHILLA_TOKENS = 20
"""Tokens per parameter that made the best of a compute budget (Hoffmann et al. 2022, arXiv 2203.15556, §3.4)."""
MOST_DEVICES = 65_536


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will take."""

    workload: Workload
    device: str
    num_devices: int
    device_memory: int | None
    """Bytes that one device has for the run; None: not known."""
    parameters: int
    layers: int
    tokens: int
    flops_per_token: float
    memory: MemoryPlan
    """Of one device."""
    seconds_per_step: float
    measured: StepTime | None
    """The probe behind the time; None: computed from `assumed_mfu`."""
    assumed_mfu: float | None
    checkpoint_bytes: int
    """Of one checkpoint."""

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.flops_per_token * self.tokens

    @property
    def seconds(self) -> float:
        """Of the whole run, without checkpoints and evaluation."""
        return self.seconds_per_step * self.workload.steps

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.tokens / self.seconds

    @property
    def disk_bytes(self) -> int:
        """All checkpoints that lie on the disk at once."""
        return self.checkpoint_bytes * self.workload.num_checkpoints

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, as far as it is known."""
        return self.device_memory is None or self.memory.peak <= self.device_memory

    @property
    def launch_bound(self) -> bool:
        """Whether an assumed time is that of starting operations rather than of arithmetic."""
        launches = self.workload.accumulation * LAUNCH_SECONDS
        return self.measured is None and self.seconds_per_step <= launches * self.layers

    @property
    def tokens_per_parameter(self) -> float:
        """Chinchilla's optimum is about `CHINCHILLA_TOKENS`."""
        return self.tokens / self.parameters

    @property
    def cost(self) -> float | None:
        """In the currency of the workload's price; None without one."""
        price = self.workload.price_per_hour
        return None if price is None else price * self.num_devices * self.seconds / 3600

    def to_json(self) -> dict[str, Any]:
        """Every figure, in JSON's types; bytes, seconds and FLOPs."""
        names = ("flops", "seconds", "tokens_per_second", "disk_bytes", "fits", "tokens_per_parameter", "cost")
        return asdict(self) | {name: getattr(self, name) for name in names}

    def text(self) -> str:
        """The plan as lines of text."""
        from camelid.plan.show import show

        return show(self)


def plan_training(config: ModelConfig, workload: Workload) -> TrainingPlan:
    """Plan a run that trains all parameters in fp32 with AdamW or Muon.

    On a device that is here, one block is run for a second or two; for one of `DEVICES` the time follows from the data
    sheet and `ASSUMED_MFU`.

    Args:
        config: the model's shape.
        workload: what is trained on, and where.

    Raises:
        ConfigError: there is no such device, neither here nor in the table; or the model reads images.
    """
    if config.image_token_id is not None:
        raise ConfigError("the training of a model that reads images cannot be planned yet", where=config.model_type)
    if workload.device in DEVICES:
        return _plan_elsewhere(config, workload, DEVICES[workload.device])
    return _plan_here(config, workload)


def _plan_here(config: ModelConfig, workload: Workload) -> TrainingPlan:
    from camelid.plan.memory import plan_memory
    from camelid.plan.probe import probe_step

    device = _device_here(workload.device)
    dtype = _dtype(workload.dtype, device.type)
    memory = plan_memory(config, workload, dtype, on_cpu=device.type == "cpu")
    time = probe_step(config, workload, device, dtype)
    return _plan(config, workload, str(device), 1, _memory_here(device), memory, time.total, measured=time)


def _plan_elsewhere(config: ModelConfig, workload: Workload, device: Device) -> TrainingPlan:
    dtype = _dtype(workload.dtype, "cuda")
    usable = int(device.memory * USABLE_SHARE)
    num_devices, memory = _layout(config, workload, dtype, usable)
    peak = device.float32_flops if dtype.itemsize == 4 else device.bfloat16_flops
    flops = _flops_per_token(config, workload) * workload.tokens / workload.steps
    if workload.activation_checkpointing:
        flops *= 4 / 3
    seconds = flops / (num_devices * peak * ASSUMED_MFU)
    # A small model waits for its operations to be started, not for their arithmetic.
    seconds = max(seconds, workload.accumulation * config.num_hidden_layers * LAUNCH_SECONDS)
    return _plan(config, workload, device.name, num_devices, usable, memory, seconds, mfu=ASSUMED_MFU)


def _plan(
    config: ModelConfig,
    workload: Workload,
    device: str,
    num_devices: int,
    device_memory: int | None,
    memory: MemoryPlan,
    seconds_per_step: float,
    *,
    measured: StepTime | None = None,
    mfu: float | None = None,
) -> TrainingPlan:
    return TrainingPlan(
        workload=workload,
        device=device,
        num_devices=num_devices,
        device_memory=device_memory,
        parameters=config.num_parameters,
        layers=config.num_hidden_layers,
        tokens=workload.tokens,
        flops_per_token=_flops_per_token(config, workload),
        memory=memory,
        seconds_per_step=seconds_per_step,
        measured=measured,
        assumed_mfu=mfu,
        checkpoint_bytes=(memory.weights + memory.optimizer) * num_devices,
    )


def _layout(config: ModelConfig, workload: Workload, dtype: torch.dtype, usable: int) -> tuple[int, MemoryPlan]:
    """The number of devices and the memory of each: those asked for, or else the fewest that suffice.

    These are a power of two, each with at least one row of the batch; where none suffice, the most that have a row.
    """
    from camelid.plan.memory import plan_memory

    num_devices = workload.num_devices or 1
    while True:
        memory = plan_memory(config, workload, dtype, on_cpu=False, num_devices=num_devices)
        more = 2 * num_devices
        if memory.peak <= usable or workload.num_devices is not None or more > min(workload.batch_size, MOST_DEVICES):
            return num_devices, memory
        num_devices = more


def _flops_per_token(config: ModelConfig, workload: Workload) -> float:
    lengths = sequence_lengths(workload.batch_size, workload.sequence_length, workload.document_length)
    return training_flops_per_token(config, mean_seen(lengths))


def _device_here(name: str) -> torch.device:
    from camelid.base.runtime import pick_device

    try:
        return pick_device(name)
    except ConfigError as error:
        hint = did_you_mean(name, [*DEVICES, "cpu", "cuda", "auto"])
        raise ConfigError(f"the device '{name}' is neither here nor in the table", where="device", hint=hint) from error


def _dtype(name: str, device_type: str) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.float32 if device_type == "cpu" else torch.bfloat16
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _memory_here(device: torch.device) -> int | None:
    import torch

    from camelid.base.runtime import available_memory

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()
