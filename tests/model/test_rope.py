"""Rotary frequencies and the turning of queries and keys."""

from __future__ import annotations

import math

import pytest
import torch

from camelid.model.rope import ROPE_TYPES, LinearRope, Llama3Rope, RopeParameters, YarnRope
from camelid.model.rotary import AdjacentRotaryEmbedding, RotaryEmbedding

LLAMA_3_1 = Llama3Rope(
    rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
KINDS = [
    RopeParameters(rope_theta=500_000.0),
    LinearRope(factor=4.0),
    LLAMA_3_1,
    YarnRope(factor=16.0, original_max_position_embeddings=4096),
    YarnRope(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.707, truncate=False),
    YarnRope(factor=4.0, original_max_position_embeddings=32768, attention_factor=1.5, beta_fast=16.0, beta_slow=2.0),
]


def test_every_type_is_checked_here() -> None:
    assert {kind.rope_type for kind in KINDS} == set(ROPE_TYPES)


@pytest.mark.parametrize("parameters", KINDS, ids=lambda kind: kind.rope_type)
def test_angles_are_bit_for_bit_those_of_transformers(parameters: RopeParameters) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hf = parameters.to_hf()
    config = transformers.LlamaConfig(
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", **(hf["rope_scaling"] or {}), "rope_theta": hf["rope_theta"]},
    )
    positions = torch.tensor([0, 1, 2, 100, 8191, 8192, 100_000, 131_071])
    cos, sin = LlamaRotaryEmbedding(config)(torch.empty(0), positions[None])

    rotation = RotaryEmbedding(parameters, head_dim=128)(positions)

    assert torch.equal(rotation.cos_T1D[:, 0], cos[0])
    assert torch.equal(rotation.sin_T1D[:, 0, 64:], sin[0, :, 64:])
    assert torch.equal(-rotation.sin_T1D[:, 0, :64], sin[0, :, :64])


def test_llama3_with_equal_factors_blends_nothing() -> None:
    scout = Llama3Rope(
        rope_theta=500_000.0,
        factor=16.0,
        low_freq_factor=1.0,
        high_freq_factor=1.0,
        original_max_position_embeddings=8192,
    )
    plain = RopeParameters(rope_theta=500_000.0).frequencies(128)

    ratios = scout.frequencies(128) / plain

    assert set(ratios.tolist()) == {1.0, 1 / 16}
    assert ratios.tolist() == [1 / 16 if 2 * math.pi / f > 8192 else 1.0 for f in plain.tolist()]


@pytest.mark.parametrize("position", [0, 1, 77])
def test_adjacent_pairs_turn_as_complex_numbers_do(position: int) -> None:
    x = torch.randn(1, 3, 8)
    angles = position * RopeParameters().frequencies(8)
    expected = torch.view_as_complex(x.view(1, 3, 4, 2)) * torch.polar(torch.ones(4), angles)

    turned = AdjacentRotaryEmbedding(RopeParameters(), 8)(torch.tensor([position])).apply(x)

    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(2))


def test_llama3_keeps_fast_turns_divides_slow_ones_and_blends_between() -> None:
    plain, scaled = RopeParameters(rope_theta=500_000.0).frequencies(128), LLAMA_3_1.frequencies(128)

    for f, g in zip(plain.tolist(), scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            assert g == pytest.approx(f, rel=1e-6)
        elif wavelength > 8192:
            assert g == pytest.approx(f / 8, rel=1e-6)
        else:
            s = (8192 / wavelength - 1) / (4 - 1)
            assert g == pytest.approx((1 - s) * f / 8 + s * f, rel=1e-5)


def test_turning_is_multiplication_by_a_complex_number() -> None:
    x = torch.randn(5, 3, 16)
    positions = torch.tensor([0, 1, 7, 100, 5000])
    angles = positions[:, None, None] * RopeParameters().frequencies(16)

    turned = RotaryEmbedding(RopeParameters(), head_dim=16)(positions).apply(x)

    expected = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(torch.complex(turned[..., :8], turned[..., 8:]), expected)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)
    rotary = RotaryEmbedding(RopeParameters(), head_dim=64)

    def score(query_position: int, key_position: int) -> float:
        turned_q = rotary(torch.tensor([query_position])).apply(q)
        return (turned_q * rotary(torch.tensor([key_position])).apply(k)).sum().item()

    assert score(3, 0) == pytest.approx(score(103, 100), abs=1e-3)


def test_bf16_heads_are_turned_in_fp32() -> None:
    x = torch.randn(4, 2, 64).bfloat16()
    rotation = RotaryEmbedding(RopeParameters(), head_dim=64)(torch.tensor([1, 50, 1000, 4000]))

    turned = rotation.apply(x)

    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotation.apply(x.float()).bfloat16())
