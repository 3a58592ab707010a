"""Accelerators to plan for that need not be here, by the makers' data sheets. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator."""

    name: str
    bfloat16_flops: float
    """FLOP/s of dense bfloat16 matrix products summed in float32, by the data sheet."""
    float32_flops: float
    """FLOP/s in float32 proper, outside the tensor cores: what torch uses by default."""
    memory: int
    """Bytes."""
    source: str


ASSUMED_MFU = 0.4
"""Share of the data sheet's FLOP/s that a run is taken to reach: Llama 3 405B reached 0.38 to 0.43 on H100s
(Grattafiori et al. 2024, arXiv 2407.21783, Table 4). A model of less than about a billion parameters reaches less."""

LAUNCH_SECONDS = 1e-3
"""Of starting the operations of one layer, forward and backward: about a hundred at ten microseconds each. Assumed."""

USABLE_SHARE = 0.9
"""Of a device's memory: the rest goes to the driver's context, workspaces and what fragments."""

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="a100",
            bfloat16_flops=312e12,
            float32_flops=19.5e12,
            memory=80 * 10**9,
            source="NVIDIA A100 80GB data sheet, SXM",
        ),
        Device(
            name="h100",
            bfloat16_flops=989e12,
            float32_flops=67e12,
            memory=80 * 10**9,
            source="NVIDIA H100 data sheet, SXM; half of the figure with sparsity",
        ),
        Device(
            name="h200",
            bfloat16_flops=989e12,
            float32_flops=67e12,
            memory=141 * 10**9,
            source="NVIDIA H200 data sheet, SXM; half of the figure with sparsity",
        ),
        Device(
            name="b200",
            bfloat16_flops=2250e12,
            float32_flops=75e12,
            memory=180 * 10**9,
            source="NVIDIA HGX B200 data sheet, an eighth of the board; half of the figure with sparsity",
        ),
        Device(
            name="rtx4090",
            bfloat16_flops=165.2e12,
            float32_flops=82.6e12,
            memory=24 * 10**9,
            source="NVIDIA Ada GPU architecture whitepaper, appendix A",
        ),
    )
}
"""Name → device."""
