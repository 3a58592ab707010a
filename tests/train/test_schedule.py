from __future__ import annotations

import math

import pytest

from camelid.train.schedule import learning_rate_share, warmup_cosine, warmup_stable_decay
from camelid.train.settings import ScheduleSettings


def test_warmup_rises_in_equal_steps_to_the_peak() -> None:
    assert [warmup_cosine(n, 100, 4, 0.1) for n in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_the_final_share() -> None:
    assert warmup_cosine(55, 100, 10, 0.2) == pytest.approx(0.6)
    assert warmup_cosine(100, 100, 10, 0.2) == pytest.approx(0.2)
    assert warmup_cosine(32, 100, 10, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 90)))


def test_stable_decay_holds_the_peak_and_falls_with_the_root() -> None:
    assert {warmup_stable_decay(n, 100, 10, 20, 0.0) for n in range(10, 81)} == {1.0}
    assert warmup_stable_decay(85, 100, 10, 20, 0.0) == pytest.approx(0.5)
    assert warmup_stable_decay(100, 100, 10, 20, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_every_share_of_a_run_lies_between_nothing_and_the_peak(name: str) -> None:
    schedule = ScheduleSettings(name=name, warmup_steps=3, decay_steps=5 if name == "wsd" else 0)
    shares = [learning_rate_share(schedule, n, 20) for n in range(1, 21)]
    assert all(0 < share <= 1 for share in shares)
    assert shares[2] == 1.0
    assert (shares[-1] == 1.0) == (name == "constant")


def test_without_warmup_the_first_update_is_at_the_peak() -> None:
    assert learning_rate_share(ScheduleSettings(name="constant", warmup_steps=0), 1, 5) == 1.0
