"""Packing by search: no worse than ggml's own quantiser, and sound on weights of every kind."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from camelid.base.errors import NotFoundError
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor

GGML_ERRORS = {
    "iq4_nl": {
        "gauss": 0.0764482,
        "heavy tails": 0.00263035,
        "shifted": 0.121987,
        "once 4 bits": 0.0370383,
        "one size": 0.056853,
    },
    "q2_k": {
        "gauss": 0.295939,
        "heavy tails": 0.0097292,
        "shifted": 0.29615,
        "once 4 bits": 0.136673,
        "one size": 0.000244141,
    },
    "q3_k": {
        "gauss": 0.1514,
        "heavy tails": 0.00518868,
        "shifted": 0.224164,
        "once 4 bits": 0.0729882,
        "one size": 0.1233,
    },
    "q4_k": {
        "gauss": 0.0714281,
        "heavy tails": 0.0024559,
        "shifted": 0.0712681,
        "once 4 bits": 0.00498882,
        "one size": 0.000698251,
    },
    "q5_k": {
        "gauss": 0.0362677,
        "heavy tails": 0.00124216,
        "shifted": 0.0357829,
        "once 4 bits": 0.00734138,
        "one size": 0.000455834,
    },
    "q6_k": {
        "gauss": 0.0177675,
        "heavy tails": 0.000647203,
        "shifted": 0.0270329,
        "once 4 bits": 0.00429079,
        "one size": 0.00537382,
    },
}
"""Root mean square errors of ggml's quantisers (ggml-quants.c of llama-cpp-python 0.3.36, no importance matrix) on the
weights of `sample`."""

STEP = {"q2_k": 1 / 3, "q3_k": 1 / 3, "q4_k": 1 / 15, "q5_k": 1 / 31, "q6_k": 1 / 31, "iq4_nl": 0.2}
"""The widest distance of two levels in a sub-block, of its largest weight's size or of its range."""


def sample(kind: str) -> torch.Tensor:
    generator = np.random.default_rng(0)
    if kind == "gauss":
        return torch.from_numpy(generator.standard_normal((64, 1024)).astype(np.float32))
    if kind == "heavy tails":
        return torch.from_numpy(generator.standard_t(4, (64, 1024)).astype(np.float32) * np.float32(0.02))
    if kind == "once 4 bits":
        return torch.from_numpy((generator.integers(0, 16, (64, 1024)) - 8).astype(np.float32) / 8)
    if kind == "one size":
        return torch.from_numpy(generator.integers(0, 2, (64, 1024)).astype(np.float32) * 2 - 1)
    return torch.from_numpy((generator.standard_normal((64, 1024)) + 1.5).astype(np.float32))


def unpacked(name: str, weight: torch.Tensor) -> torch.Tensor:
    codec = FORMATS.load(name)
    return codec.unpack(codec.pack(weight))


@pytest.mark.parametrize("kind", ["gauss", "heavy tails", "shifted", "once 4 bits", "one size"])
@pytest.mark.parametrize("name", GGML_ERRORS)
def test_the_error_is_no_larger_than_ggmls(name: str, kind: str) -> None:
    weight = sample(kind)
    error = (unpacked(name, weight) - weight).square().mean().sqrt().item()
    assert error <= GGML_ERRORS[name][kind] * 1.001


@pytest.mark.parametrize("name", GGML_ERRORS)
@settings(max_examples=30, deadline=None)
@given(values=hnp.arrays(np.float32, (1, 256), elements=st.floats(-1000, 1000, width=32, allow_subnormal=True)))
def test_every_weight_stays_near_its_size(name: str, values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    block = weight.abs().max().item()
    error = (unpacked(name, weight) - weight).abs().max().item()
    # Half a step, and what the sub-block's own scale and minimum lose when they are rounded to six bits: the largest of
    # them decides how finely (with five bits of weights, at most 0.49 + 0.25 steps). The block's factor is a half, off
    # by up to 2^-25 where it is tiny, and stands for up to 32 · 128 of the weights' units (Q6_K).
    assert error <= 1.75 * block * STEP[name] + 32 * 128 * 2**-25
    assert math.isfinite(error)


@pytest.mark.parametrize("name", GGML_ERRORS)
def test_zeros_and_what_a_half_cannot_hold_become_zeros(name: str) -> None:
    weight = torch.zeros(3, 256)
    weight[1] = 1e-42
    weight[2, 1::2] = 1.2e-38
    weight[2, ::2] = -1e-12
    assert bool((unpacked(name, weight) == 0).all())


@pytest.mark.parametrize("name", GGML_ERRORS)
@pytest.mark.parametrize("value", [1.5, -1.5])
def test_one_weight_alone_and_equal_weights_are_kept(name: str, value: float) -> None:
    weight = torch.zeros(2, 256)
    weight[0] = value
    weight[1, 77] = value
    atol = 0.02 if name == "iq4_nl" else 1e-3  # it has no level at zero
    torch.testing.assert_close(unpacked(name, weight), weight, rtol=0, atol=atol)


@pytest.mark.parametrize("name", GGML_ERRORS)
def test_the_largest_weights_that_fit_are_kept(name: str) -> None:
    weight = sample("gauss")[:4, :256] * 60_000
    error = (unpacked(name, weight) - weight).norm() / weight.norm()
    assert error.item() < 0.5


@pytest.mark.parametrize("name", GGML_ERRORS)
def test_every_block_is_packed_by_itself(name: str) -> None:
    codec = FORMATS.load(name)
    whole = codec.pack(torch.cat([sample("gauss")] * 4)).data
    apart = [codec.pack(part).data for part in sample("gauss").split([1, 2, 3, 5, 7, 46])]
    assert torch.equal(whole, torch.cat(apart * 4))


def test_a_rare_format_without_the_gguf_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = FORMATS.load("iq4_xs")
    packed = PackedTensor(torch.zeros(1, codec.block_bytes, dtype=torch.uint8), "iq4_xs", (1, 256))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(NotFoundError, match="iq4_xs need the gguf package") as caught:
        codec.unpack(packed)
    assert "camelid[gguf]" in str(caught.value.hint)
