"""What a training run will take, before it is paid for: memory, time, disk and cost.

plan = plan_training(PRESETS["stories15m"].config, Workload(steps=1000, batch_size=8, sequence_length=256))
print(plan.text())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.plan.devices import DEVICES, Device
    from camelid.plan.scaling import ComputeOptimal, compute_optimal
    from camelid.plan.training import TrainingPlan, plan_training
    from camelid.plan.workload import Workload

__all__ = ["DEVICES", "ComputeOptimal", "Device", "TrainingPlan", "Workload", "compute_optimal", "plan_training"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DEVICES": "camelid.plan.devices",
        "ComputeOptimal": "camelid.plan.scaling",
        "Device": "camelid.plan.devices",
        "TrainingPlan": "camelid.plan.training",
        "Workload": "camelid.plan.workload",
        "compute_optimal": "camelid.plan.scaling",
        "plan_training": "camelid.plan.training",
    },
)
