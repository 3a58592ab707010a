"""Learning-rate schedules: pure functions of the update's number, as a share of the peak rate.

Updates are counted from 1, so that the first is not wasted at a rate of 0 and the last has exactly the final share.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from camelid.train.settings import ScheduleSettings


def learning_rate_share(schedule: ScheduleSettings, update: int, num_updates: int) -> float:
    """The share of the peak learning rate at one update of a run.

    Args:
        schedule: which curve, and its lengths.
        update: number of the update, from 1 to `num_updates`.
        num_updates: updates of the whole run.
    """
    match schedule.name:
        case "cosine":
            return warmup_cosine(update, num_updates, schedule.warmup_steps, schedule.final_share)
        case "wsd":
            return warmup_stable_decay(
                update, num_updates, schedule.warmup_steps, schedule.decay_steps, schedule.final_share
            )
        case "constant":
            return warmup(update, schedule.warmup_steps)
        case _:
            assert_never(schedule.name)


def warmup(update: int, warmup_steps: int) -> float:
    """update / warmup_steps, then 1."""
    return min(1.0, update / warmup_steps) if warmup_steps else 1.0


def warmup_cosine(update: int, num_updates: int, warmup_steps: int, final_share: float) -> float:
    """Warmup, then half a cosine from 1 to `final_share` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""
    if update <= warmup_steps:
        return warmup(update, warmup_steps)
    progress = (update - warmup_steps) / (num_updates - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_stable_decay(
    update: int, num_updates: int, warmup_steps: int, decay_steps: int, final_share: float
) -> float:
    """Warmup, a plateau, and a decay by 1 − √progress (Hägele et al. 2024, arXiv 2405.18392, §3)."""
    decay_begin = num_updates - decay_steps
    if update <= decay_begin:
        return warmup(update, warmup_steps)
    progress = min((update - decay_begin) / decay_steps, 1.0)
    return 1 - (1 - final_share) * math.sqrt(progress)
