"""Each native kernel against its torch twin, for every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from camelid import kernels
from camelid.codecs import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.codecs.packed import PackedTensor

SETS = kernels.instruction_sets()
FORMAT_NAMES = ["q4_0", "q4_1", "q8_0"]

pytestmark = pytest.mark.skipif(not SETS, reason="the native kernels were not built (no C++ compiler at install time)")


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def packed_matrix(name: str, rows: int, columns: int) -> PackedTensor:
    return FORMATS.load(name).pack(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)))


def plain_unpack(packed: PackedTensor) -> torch.Tensor:
    codec = FORMATS.load(packed.format)
    return codec.unpack_blocks(packed.data.reshape(-1, codec.block_bytes)).reshape(packed.shape)


def test_every_kernel_is_held_to_a_twin() -> None:
    from camelid.kernels import _native

    assert {name: FORMATS.load(name).block_bytes for name in FORMAT_NAMES} == _native.formats()


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (300, 576)])
def test_unpacking_is_bit_for_bit_the_twins(
    name: str, instruction_set: str, shape: tuple[int, int], num_threads: int
) -> None:
    packed = packed_matrix(name, *shape)
    out_RN = torch.full(shape, torch.nan)
    kernels.unpack(name, packed.data, out_RN, instruction_set=instruction_set)
    assert torch.equal(out_RN, plain_unpack(packed))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_every_scale_is_decoded_exactly(name: str, instruction_set: str) -> None:
    codec = FORMATS.load(name)
    halves = torch.arange(0, 2**16, dtype=torch.int32)
    halves = halves[(halves & 0x7C00) != 0x7C00].to(torch.int16)
    blocks_GK = torch.randint(0, 256, (len(halves), codec.block_bytes), dtype=torch.uint8)
    blocks_GK[:, :2] = halves.view(torch.uint8).reshape(-1, 2)
    if name == "q4_1":
        blocks_GK[:, 2:4] = blocks_GK[:, :2].flip(0)
    out_RN = torch.empty(len(halves), 32)
    kernels.unpack(name, blocks_GK, out_RN, instruction_set=instruction_set)
    assert torch.equal(out_RN.view(torch.int32), codec.unpack_blocks(blocks_GK).view(torch.int32))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 13])
def test_products_are_the_twins_to_rounding(name: str, instruction_set: str, batch: int) -> None:
    packed = packed_matrix(name, 75, 352)
    x_TN = torch.randn(batch, 352)
    got = kernels.matmul(name, x_TN, packed.data, instruction_set=instruction_set)
    dense = plain_unpack(packed).double()
    scale = x_TN.double().abs() @ dense.abs().T
    assert bool(((got - x_TN.double() @ dense.T).abs() <= 1e-6 * scale).all())


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_row_does_not_depend_on_its_company(name: str, instruction_set: str, num_threads: int) -> None:
    packed = packed_matrix(name, 1003, 288)
    x_TN = torch.randn(11, 288)
    alone = torch.cat(
        [kernels.matmul(name, x_TN[t : t + 1], packed.data, instruction_set=instruction_set) for t in range(11)]
    )
    for batch in (2, 3, 4, 7, 11):
        together = kernels.matmul(name, x_TN[:batch].contiguous(), packed.data, instruction_set=instruction_set)
        assert torch.equal(together, alone[:batch])
    for first, last in ((0, 1), (5, 14), (1002, 1003)):
        part = kernels.matmul(name, x_TN[:1], packed.data[first:last].contiguous(), instruction_set=instruction_set)
        assert torch.equal(part, alone[:1, first:last])


def test_no_rows_and_no_tokens_are_no_work() -> None:
    packed = packed_matrix("q8_0", 4, 64)
    assert kernels.matmul("q8_0", torch.empty(0, 64), packed.data).shape == (0, 4)
    assert kernels.matmul("q8_0", torch.ones(1, 64), packed.data[:0]).shape == (1, 0)


def test_callers_in_many_threads_get_their_own_results() -> None:
    packed = packed_matrix("q4_1", 2048, 256)
    inputs = [torch.randn(1, 256) for _ in range(40)]
    expected = [kernels.matmul("q4_1", x, packed.data) for x in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda x: kernels.matmul("q4_1", x, packed.data), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    code = (
        "import os, torch\n"
        "from camelid import kernels\n"
        "from camelid.codecs import FORMATS\n"
        "torch.set_num_threads(2)\n"
        "packed = FORMATS.load('q8_0').pack(torch.randn(4096, 256))\n"
        "x = torch.randn(1, 256)\n"
        "before = kernels.matmul('q8_0', x, packed.data)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(before, kernels.matmul('q8_0', x, packed.data)) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def run_with(setting: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CAMELID_KERNELS": setting}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("setting", "expected"), [("torch", "None"), ("portable", "portable"), ("", SETS[0] if SETS else "")]
)
def test_the_environment_chooses_the_kernels(setting: str, expected: str) -> None:
    done = run_with(setting, "from camelid import kernels; print(kernels.instruction_set())")
    assert done.stdout.strip() == expected


def test_an_unknown_choice_is_an_error_that_names_the_known_ones() -> None:
    done = run_with("avx3", "from camelid import kernels; kernels.native_available()")
    assert "ConfigError" in done.stderr
    assert "CAMELID_KERNELS is 'avx3'" in done.stderr
    assert "hint: did you mean" in done.stderr
