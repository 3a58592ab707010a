"""Sampling settings that no distribution satisfies are refused when they are made, not inside a step."""

from __future__ import annotations

import pytest

from camelid.base.errors import SamplingError
from camelid.engine.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", v) for v in (0, -1, 2.5, "5", True)),
        *(("temperature", v) for v in (-0.1, float("nan"), float("inf"), "1", None, True)),
        *(("top_k", v) for v in (-1, 1.5, "3")),
        *(("top_p", v) for v in (0, -1, 1.01, float("nan"), "x")),
        *(("min_p", v) for v in (-0.1, 1.1, float("nan"))),
        *(("repetition_penalty", v) for v in (0, -1, float("inf"), "x")),
        *(("seed", v) for v in (-1, 2**63, 1.5, "x")),
        *(("stop", v) for v in ("", ["a", ""], [5], b"x")),
        *(("stop_token_ids", v) for v in ([-1], ["a"], [1.5])),
        *(("ignore_eos", v) for v in ("no", 1)),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"^{name} must be ") as caught:
        SamplingParams(**{name: value})
    assert caught.value.where == name


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingParams(stop="ab") == SamplingParams(stop=["ab"]) == SamplingParams(stop=("ab",))
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
