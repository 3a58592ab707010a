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
        *((name, 5) for name in ("stop", "choice", "banned_strings", "stop_token_ids", "banned_token_ids")),
        *((name, None) for name in ("stop", "choice", "banned_token_ids")),
        *((name, 10**400) for name in ("temperature", "top_p", "presence_penalty", "dry_multiplier", "mirostat_tau")),
        *((name, 1.1e30) for name in ("presence_penalty", "frequency_penalty")),
        pytest.param("temperature", 10**5000, id="more digits than Python prints"),
        *(("logit_bias", v) for v in ({3: 1e300}, {"7": 1, 7: 2}, ((3, 1), (3, 2)), {True: 1}, {1.5: 1})),
        *(("n", v) for v in (0, -1, 2**16 + 1, 10**12, 1.5, True)),
        *(("adapter", v) for v in ("", 5)),
        *(("priority", v) for v in (1001, -1001, 0.5)),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"^{name} must be ") as caught:
        SamplingParams(**{name: value})
    assert caught.value.where == name


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingParams(stop="ab") == SamplingParams(stop=["ab"]) == SamplingParams(stop=("ab",))
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
