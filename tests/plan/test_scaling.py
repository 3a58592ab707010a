from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.plan.scaling import compute_optimal, expected_loss


@given(st.floats(1e15, 1e27), st.sampled_from([0.5, 0.9, 1.1, 2.0]))
def test_no_other_model_of_the_budget_reaches_a_lower_loss(flops: float, factor: float) -> None:
    best = compute_optimal(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    other = expected_loss(best.parameters * factor, best.tokens / factor)
    assert expected_loss(best.parameters, best.tokens) < other


def test_the_budget_of_chinchilla_gives_about_its_model() -> None:
    best = compute_optimal(5.76e23)
    assert best.parameters == pytest.approx(70e9, rel=0.25)
    assert best.tokens_per_parameter == pytest.approx(20, rel=0.35)
