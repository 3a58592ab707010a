"""Every weight format: exact against the gguf package, bounded in its error, and the same by every path."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from camelid import kernels
from camelid.base.errors import ConfigError
from camelid.base.gguf_header import GGML_TYPES
from camelid.codecs import FORMATS
from camelid.codecs.base import FEW_ROWS
from camelid.codecs.packed import PackedTensor

NAMES = FORMATS.names()
ROUNDED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
"""Packed by rounding alone, which the gguf package does too."""
SEARCHED = ["iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
PACKABLE = ROUNDED + SEARCHED
RARE = sorted(set(NAMES) - set(PACKABLE))
LEVELS = {"q4_0": 16, "q4_1": 16, "q5_0": 32, "q5_1": 32, "q8_0": 255}
HALVES = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q2_k": [80, 82],
    "q3_k": [108],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
    "iq1_m": [],
    "iq1_s": [0],
    "iq2_s": [0],
    "iq2_xs": [0],
    "iq2_xxs": [0],
    "iq3_s": [0],
    "iq3_xxs": [0],
    "iq4_nl": [0],
    "iq4_xs": [0],
    "mxfp4": [],
    "tq1_0": [52],
    "tq2_0": [64],
}
"""Where a block of the format keeps its half-precision numbers; IQ1_M spreads its over the block, MXFP4 has none."""


def quantization_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def random_blocks(name: str, num_blocks: int, seed: int = 0) -> torch.Tensor:
    """Any bits whatever, but finite scales."""
    codec = FORMATS.load(name)
    generator = torch.Generator().manual_seed(seed)
    blocks_GK = torch.randint(0, 256, (num_blocks, codec.block_bytes), dtype=torch.uint8, generator=generator)
    for start in HALVES[name]:
        blocks_GK[:, start + 1] &= 0b10111011
    return blocks_GK


def random_packed(name: str, rows: int, columns: int, seed: int = 0) -> PackedTensor:
    """A matrix with weights of the order of 1."""
    codec = FORMATS.load(name)
    blocks_GK = random_blocks(name, rows * columns // codec.block_size, seed)
    for start in HALVES[name]:
        scale = torch.rand(len(blocks_GK), 1).add(0.5).mul(1e-3).half()
        blocks_GK[:, start : start + 2] = scale.view(torch.uint8)
    if name == "mxfp4":
        blocks_GK[:, 0] = 117  # an exponent
    if name == "iq1_m":
        blocks_GK[:, 55] = 0x10  # the scale's upper four bits, in the upper half of the byte
    return PackedTensor(blocks_GK.reshape(rows, -1), name, (rows, columns))


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32)


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_ggmls(name: str) -> None:
    codec = FORMATS.load(name)
    assert codec.name == name
    (ggml,) = [kind for kind in GGML_TYPES.values() if kind.name == name.upper()]
    assert (codec.block_size, codec.block_bytes) == (ggml.block_size, ggml.block_bytes)


@pytest.mark.parametrize("name", NAMES)
def test_unpacking_is_bit_for_bit_the_gguf_packages(name: str) -> None:
    blocks_GK = random_blocks(name, 400)
    blocks_GK[0] = 0
    blocks_GK[1] = 255
    for value, row in ((0x0001, 2), (0x03FF, 3), (0x7BFF, 4), (0xFBFF, 5), (0x8000, 6), (0x0000, 1)):
        for start in HALVES[name]:
            blocks_GK[row, start : start + 2] = torch.tensor([value & 255, value >> 8], dtype=torch.uint8)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(blocks_GK.numpy(), quantization_type(name)))

    plain = FORMATS.load(name).unpack_blocks(blocks_GK)
    packed = PackedTensor(blocks_GK, name, tuple(plain.shape))
    unpacked = FORMATS.load(name).unpack(packed)

    assert torch.equal(bits(plain), bits(expected))
    assert torch.equal(bits(unpacked), bits(expected))


@pytest.mark.parametrize("name", ROUNDED)
def test_packing_is_byte_for_byte_the_gguf_packages(name: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[1] = 1.5
    weight[2, :32] = torch.linspace(-3, 3, 32)
    weight[3] = weight[3].round()
    expected = gguf.quants.quantize(weight.numpy(), quantization_type(name))
    assert torch.equal(FORMATS.load(name).pack(weight).data, torch.from_numpy(expected))


@pytest.mark.parametrize("name", ROUNDED)
@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, (2, 32), elements=st.floats(-30_000, 30_000, width=32, allow_subnormal=True)),
)
def test_packing_keeps_every_weight_within_one_level(name: str, values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    codec = FORMATS.load(name)
    error = (codec.unpack(codec.pack(weight)) - weight).abs().amax(dim=1)
    largest = weight.abs().amax(dim=1)
    step = 2 * largest / (LEVELS[name] - 1)
    # scale and minimum are halves: 2^-11 of their size, at least half of the smallest half
    half_rounding = largest * 2**-10 + LEVELS[name] * 2**-25
    assert bool((error <= step + half_rounding).all())


@pytest.mark.parametrize("name", PACKABLE)
def test_packing_twice_changes_nothing_for_a_tensor_of_any_rank(name: str) -> None:
    codec = FORMATS.load(name)
    once = codec.pack(torch.randn(3, 2, 512))
    assert once.shape == (3, 2, 512)
    assert once.data.shape == (6, 512 // codec.block_size * codec.block_bytes)
    assert torch.equal(codec.unpack(once), codec.unpack(once, torch.float64).float())


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_without_a_size_are_refused(name: str, value: float) -> None:
    weight = torch.zeros(2, 256)
    weight[1, 40] = value
    with pytest.raises(ConfigError, match="not-a-number"):
        FORMATS.load(name).pack(weight)


@pytest.mark.parametrize("size", [9e8, 3e38])
@pytest.mark.parametrize("name", PACKABLE)
def test_weights_beyond_half_precision_are_refused(name: str, size: float) -> None:
    weight = torch.zeros(1, 256)
    weight[0, 0], weight[0, 1] = size, -size
    with pytest.raises(ConfigError, match="overflows"):
        FORMATS.load(name).pack(weight)


@pytest.mark.parametrize("name", PACKABLE)
def test_rows_that_are_no_whole_blocks_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be packed") as caught:
        FORMATS.load(name).pack(torch.zeros(2, 48))
    assert f"multiple of {FORMATS.load(name).block_size}" in str(caught.value.hint)


@pytest.mark.parametrize("name", RARE)
def test_formats_that_can_only_be_read_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match="not supported"):
        FORMATS.load(name).pack(torch.zeros(2, 256))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tokens", [0, 1, 3, FEW_ROWS, FEW_ROWS + 1])
def test_the_product_is_that_of_the_unpacked_matrix(name: str, num_tokens: int) -> None:
    codec, packed = FORMATS.load(name), random_packed(name, 24, 512)
    x_TN = torch.randn(num_tokens, 512)
    dense = codec.unpack(packed).double()
    got = codec.matmul(x_TN, packed)
    assert got.dtype == torch.float32
    scale = x_TN.double().abs() @ dense.abs().T
    assert bool(((got - x_TN.double() @ dense.T).abs() <= 1e-5 * scale).all())


@pytest.mark.parametrize("num_tokens", [2, FEW_ROWS + 1])
def test_the_product_has_the_dtype_of_the_activations(num_tokens: int) -> None:
    codec, packed = FORMATS.load("q8_0"), random_packed("q8_0", 8, 64)
    x_TN = torch.randn(num_tokens, 64).bfloat16()
    got = codec.matmul(x_TN, packed)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), x_TN.float() @ codec.unpack(packed).T, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("num_tokens", [2, FEW_ROWS + 1])
@pytest.mark.parametrize("name", ["q4_1", "q6_k"])
def test_the_product_is_differentiable_in_the_activations(name: str, num_tokens: int) -> None:
    codec, packed = FORMATS.load(name), random_packed(name, 24, 256)
    x_TN = torch.randn(num_tokens, 256, requires_grad=True)
    weights_TR = torch.randn(num_tokens, 24)
    (codec.matmul(x_TN, packed) * weights_TR).sum().backward()
    twin_TN = x_TN.detach().requires_grad_()
    (F.linear(twin_TN, codec.unpack(packed)) * weights_TR).sum().backward()
    torch.testing.assert_close(x_TN.grad, twin_TN.grad)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_looked_up_one_by_one(name: str) -> None:
    codec, packed = FORMATS.load(name), random_packed(name, 10, 256)
    rows_T = torch.tensor([7, 0, 7])
    assert torch.equal(codec.unpack_rows(packed, rows_T), codec.unpack(packed)[rows_T])
    assert codec.unpack_rows(packed, rows_T, torch.bfloat16).dtype == torch.bfloat16


def test_sizes_that_do_not_fit_are_refused() -> None:
    codec, packed = FORMATS.load("q8_0"), random_packed("q8_0", 8, 64)
    with pytest.raises(ConfigError, match="cannot multiply"):
        codec.matmul(torch.zeros(1, 32), packed)


@pytest.mark.parametrize("name", NAMES)
def test_the_torch_twin_alone_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, packed = FORMATS.load(name), random_packed(name, 16, 256)
    x_TN = torch.randn(3, 256)
    unpacked, product = codec.unpack(packed), codec.matmul(x_TN, packed)
    monkeypatch.setattr(kernels, "runs_on", lambda *_: False)
    assert torch.equal(codec.unpack(packed), unpacked)
    torch.testing.assert_close(codec.matmul(x_TN, packed), product, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_of_the_process_changes_nothing(name: str, default: torch.dtype) -> None:
    codec, packed = FORMATS.load(name), random_packed(name, 8, 256)
    x_TN = torch.randn(2, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float32, requires_grad=True)
    expected, unpacked = codec.matmul(x_TN, packed), codec.unpack(packed)
    (grad,) = torch.autograd.grad(expected.sum(), x_TN)
    torch.set_default_dtype(default)
    try:
        again = codec.matmul(x_TN, packed)
        (grad_again,) = torch.autograd.grad(again.sum(), x_TN)
        assert torch.equal(codec.unpack(packed), unpacked)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, expected)
    assert torch.equal(grad_again, grad)
