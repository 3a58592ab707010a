"""Native passes between the products against torch in double precision, for every instruction set of this processor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from camelid.kernels import elementwise
from camelid.kernels.attention import vector_widths
from camelid.kernels.elementwise import runs_natively
from camelid.model.layers import RMSNorm
from camelid.model.rope import RopeParameters
from camelid.model.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = list(vector_widths())

pytestmark = pytest.mark.skipif(not SETS, reason="no training kernel was built, or this processor runs none of them")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(run: Callable[..., torch.Tensor], *inputs: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype)))


def assert_alike(ours: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(ours, exact, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(1, 16), (33, 48), (300, 288)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm_and_its_gradients(name: str, shape: tuple[int, int], size: float) -> None:
    x, weight, grad = random(*shape) * size, random(shape[1], seed=1), random(*shape, seed=2)

    ours = results(lambda x, w: elementwise.rms_norm(x, w, 1e-5, instruction_set=name), x, weight, grad=grad)

    doubles = (t.double() for t in (x, weight))
    assert_alike(ours, results(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), *doubles, grad=grad))


@pytest.mark.parametrize("name", SETS)
def test_a_weight_may_lie_anyhow_in_memory(name: str) -> None:
    x, grad = random(33, 48), random(33, 48, seed=2)
    for weight in (random(96, seed=1)[::2], random(1, seed=1).expand(48)):
        ours = results(lambda x, w: elementwise.rms_norm(x, w, 1e-5, instruction_set=name), x, weight, grad=grad)

        doubles = (t.double() for t in (x, weight))
        assert_alike(ours, results(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), *doubles, grad=grad))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(1, 16), (33, 48), (300, 768)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_swiglu_and_its_gradients(name: str, shape: tuple[int, int], size: float) -> None:
    gate, up, grad = random(*shape) * size, random(*shape, seed=1), random(*shape, seed=2)

    ours = results(lambda g, u: elementwise.swiglu(g, u, instruction_set=name), gate, up, grad=grad)

    assert_alike(ours, results(lambda g, u: F.silu(g) * u, gate.double(), up.double(), grad=grad))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(1, 1, 32), (33, 3, 48), (300, 4, 128)])
def test_rotary_embedding_and_its_gradient(name: str, shape: tuple[int, int, int]) -> None:
    x, grad = random(*shape), random(*shape, seed=1)
    angles = random(shape[0], 1, shape[2] // 2, seed=2)
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)

    ours = results(lambda x: elementwise.rotate(x, cos, sin, instruction_set=name), x, grad=grad)

    def exactly(x: torch.Tensor) -> torch.Tensor:
        return x * cos.double() + x.roll(shape[2] // 2, -1) * sin.double()

    assert_alike(ours, results(exactly, x.double(), grad=grad))


def test_a_rotation_takes_the_kernel_where_gradients_are_wanted() -> None:
    rotation = RotaryEmbedding(RopeParameters(), 64)(torch.arange(9))
    x = random(9, 2, 64)
    assert elementwise.rotates_natively(x, rotation.cos_T1D, rotation.sin_T1D)
    assert not elementwise.rotates_natively(x[..., :16], rotation.cos_T1D, rotation.sin_T1D)

    turned = rotation.apply(x)
    with torch.no_grad():
        torch.testing.assert_close(turned, rotation.apply(x))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("width", [1, 16, 37, 1003, 32000])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_shares_in_the_softmax(name: str, width: int, size: float) -> None:
    logits = random(7, width) * size
    shares = logits.clone()

    totals, logsumexps = elementwise.softmax_shares(shares, instruction_set=name)

    exact = logits.double()
    assert_alike((shares / totals[:, None], logsumexps), (exact.softmax(1), exact.logsumexp(1)))


@pytest.mark.parametrize("name", SETS)
def test_a_logit_that_is_no_number_spoils_its_row_alone(name: str) -> None:
    logits = random(3, 100)
    logits[1, 99] = torch.nan

    totals, logsumexps = elementwise.softmax_shares(logits, instruction_set=name)

    for numbers in (totals, logsumexps):
        assert numbers.isfinite().tolist() == [True, False, True]


ODD = (torch.nan, torch.inf, -torch.inf, 1e38, 1e-40)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(SETS or [""]),
    rows=st.integers(0, 5),
    width=st.integers(1, 300) | st.sampled_from([16384, 16385, 32768, 40000]),
    gap=st.integers(0, 40),
    num_levels=st.sampled_from([1, 2, 1000, 2**24]),
    odd=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(ODD)), max_size=4),
    background=st.sampled_from([None, torch.nan, -torch.inf]),
    seed=st.integers(0, 2**31),
)
def test_the_greatest_is_the_first_of_its_row_and_what_is_no_number_goes_before(
    name: str,
    rows: int,
    width: int,
    gap: int,
    num_levels: int,
    odd: list[tuple[float, float]],
    background: float | None,
    seed: int,
) -> None:
    memory = torch.full((rows, width + gap), torch.inf)  # what lies between the rows must not be seen
    x = memory[:, :width]
    generator = torch.Generator().manual_seed(seed)
    x.copy_(torch.randint(-num_levels, num_levels, x.shape, generator=generator))
    if background is not None:
        x[:1] = background
    for place, value in odd:
        x[:1, int(place * width)] = value

    found, places = elementwise.greatest(x, instruction_set=name)

    # By definition, since torch gives any of the greatest.
    for row, value, place in zip(x.tolist(), found, places, strict=True):
        spoiled = [column for column, number in enumerate(row) if math.isnan(number)]
        assert place == (spoiled[0] if spoiled else row.index(max(row)))
        assert math.isnan(value) if spoiled else value == max(row)


def test_rows_side_by_side_are_not_searched_natively() -> None:
    assert elementwise.finds_natively(random(4, 7))
    assert not elementwise.finds_natively(random(7, 4).T)
    assert not elementwise.finds_natively(random(4, 7).double())


@pytest.mark.parametrize("name", SETS)
def test_gates_of_any_size_neither_overflow_nor_hide_what_is_no_number(name: str) -> None:
    gate = torch.tensor([-1e30, -200.0, -0.0, 0.0, 200.0, 1e30, torch.nan, 1.0] * 4)

    out, gate_grad, _ = results(
        lambda g, u: elementwise.swiglu(g, u, instruction_set=name), gate, torch.ones(32), grad=torch.ones(32)
    )

    torch.testing.assert_close(out, F.silu(gate), equal_nan=True)
    assert gate_grad[[6]].isnan().all()
    assert gate_grad[[1, 2, 3, 4, 7]].isfinite().all()


@pytest.mark.parametrize("name", SETS)
def test_threads_change_no_bit(name: str) -> None:
    x, weight, grad = random(1000, 96), random(96, seed=1), random(1000, 96, seed=2)
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            norm = results(lambda x, w: elementwise.rms_norm(x, w, 1e-5, instruction_set=name), x, weight, grad=grad)
            gated = results(lambda g, u: elementwise.swiglu(g, u, instruction_set=name), x, grad, grad=grad)
            logits = x.clone()
            best = [torch.tensor(numbers) for numbers in elementwise.greatest(x, instruction_set=name)]
            found.append((*norm, *gated, *best, *elementwise.softmax_shares(logits, instruction_set=name), logits))
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_only_fp32_on_whole_vectors_is_taken() -> None:
    assert elementwise.runs_natively(random(3, 32))
    assert not elementwise.runs_natively(random(3, 12))
    assert not elementwise.runs_natively(random(3, 32).double())


def test_without_gradients_the_bits_are_those_of_training() -> None:
    x, up, weight = random(7, 64), random(7, 64, seed=1), random(64, seed=2)
    heads = random(7, 2, 32, seed=3)
    rotation = RotaryEmbedding(RopeParameters(), 32)(torch.arange(7))

    def outs() -> list[torch.Tensor]:
        return [elementwise.rms_norm(x, weight, 1e-5), elementwise.swiglu(x, up), rotation.apply(heads)]

    trained = outs()
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(outs(), trained, strict=True))


def test_fake_tensors_take_the_same_way_without_being_touched() -> None:
    with FakeTensorMode():
        norm, x = RMSNorm(64, 1e-5), torch.empty(4, 64, requires_grad=True)
        assert runs_natively(x, norm.weight)
        elementwise.swiglu(norm(x), x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (4, 64)
