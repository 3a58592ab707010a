"""Llama 3's scaling of rotary frequencies, read back from the divisors that are all a GGUF file holds of it."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import CamelidError, ConfigError
from camelid.checkpoint.gguf_rope import llama3_scaling
from camelid.model.rope import Llama3Rope, RopeParameters

RELEASED = [(1.0, 4.0, 8192)]


def divisors_of(rope: Llama3Rope, head_dim: int) -> torch.Tensor:
    return RopeParameters(rope_theta=rope.rope_theta).frequencies(head_dim) / rope.frequencies(head_dim)


@given(
    head_dim=st.sampled_from([4, 8, 16, 64, 80, 128]),
    rope_theta=st.sampled_from([100.0, 10_000.0, 500_000.0]),
    factor=st.floats(1.5, 64),
    low=st.floats(0.5, 4),
    spread=st.one_of(st.just(1.0), st.floats(1.1, 50)),
    original=st.integers(1, 65_536),
)
def test_whatever_the_scaling_was_the_same_frequencies_are_read(
    head_dim: int, rope_theta: float, factor: float, low: float, spread: float, original: int
) -> None:
    rope = Llama3Rope(
        rope_theta=rope_theta,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=low * spread,
        original_max_position_embeddings=original,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = llama3_scaling(divisors_of(rope, head_dim), rope_theta, head_dim, RELEASED, "m.gguf")

    kind = {name: value for name, value in (read or {}).items() if name != "rope_type"}
    same = Llama3Rope(rope_theta=rope_theta, **kind) if kind else RopeParameters(rope_theta=rope_theta)
    assert torch.allclose(same.frequencies(head_dim), rope.frequencies(head_dim), rtol=2e-4, atol=0)


def test_settings_that_are_not_the_only_ones_are_warned_of() -> None:
    rope = Llama3Rope(
        rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=64
    )

    with pytest.warns(UserWarning, match=r"m\.gguf leaves open which context"):
        read = llama3_scaling(divisors_of(rope, 8), 500_000.0, 8, RELEASED, "m.gguf")

    assert read is not None
    assert read["factor"] == 8.0


@pytest.mark.parametrize("odd", [[1.0, 4.0, 2.0, 4.0], [8.0, 1.0, 1.0, 1.0], [1.0, 5.0, 2.0, 8.0]])
def test_divisors_that_do_not_grow_with_the_wavelength_are_refused(odd: list[float]) -> None:
    with pytest.raises(ConfigError, match="not Llama 3's kind"):
        llama3_scaling(torch.tensor(odd), 500_000.0, 8, RELEASED, "m.gguf")


@given(
    odd=st.lists(st.floats(0.5, float("inf"), width=32), min_size=4, max_size=4),
    rope_theta=st.floats(1, 1e15, exclude_min=True),
)
def test_any_other_divisors_are_read_or_refused(odd: list[float], rope_theta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = llama3_scaling(torch.tensor(odd), rope_theta, 8, RELEASED, "m.gguf")
        except CamelidError:
            return
    kind = {name: value for name, value in (read or {}).items() if name != "rope_type"}
    same = Llama3Rope(rope_theta=rope_theta, **kind) if kind else RopeParameters(rope_theta=rope_theta)
    plain = RopeParameters(rope_theta=rope_theta).frequencies(8)
    assert torch.allclose(plain / same.frequencies(8), torch.tensor(odd), rtol=2e-4, atol=0)
