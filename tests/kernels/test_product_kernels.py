"""Native matrix products against torch in double precision, for every instruction set of this processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from camelid.kernels import instruction_sets
from camelid.kernels.attention import vector_widths
from camelid.kernels.product import linear, multiplies_natively, product
from camelid.model.linear import Linear, gated, project, project_gated

if TYPE_CHECKING:
    from collections.abc import Callable

SETS = list(vector_widths())

pytestmark = pytest.mark.skipif(not SETS, reason="no training kernel was built, or this processor runs none of them")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factor(rows: int, columns: int, *, transposed: bool, seed: int) -> torch.Tensor:
    return random(columns, rows, seed=seed).T if transposed else random(rows, columns, seed=seed)


def assert_close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    assert (ours - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 210), columns=st.integers(1, 300), depth=st.integers(1, 800),
    transposed=st.tuples(st.booleans(), st.booleans()), add=st.booleans(),
)  # fmt: skip
def test_a_product_of_any_shape(
    name: str, rows: int, columns: int, depth: int, transposed: tuple[bool, bool], add: bool
) -> None:
    a = factor(rows, depth, transposed=transposed[0], seed=1)
    b = factor(depth, columns, transposed=transposed[1], seed=2)
    wide = random(rows, columns + 3, seed=3)
    out = wide[:, :columns]
    exact = a.double() @ b.double() + (out.double() if add else 0)
    beside = wide[:, columns:].clone()

    product(a, b, out_MN=out, add=add, instruction_set=name)

    # A product of few numbers may come near 0 and is measured by what it sums.
    size = (a.double().abs() @ b.double().abs() + out.abs()).norm()
    assert (out - exact).norm() <= 1e-6 * size
    assert torch.equal(wide[:, columns:], beside)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(40, 50, 9000), (2100, 600, 30), (50, 5000, 300)], ids=str)
def test_a_product_in_several_parts(name: str, shape: tuple[int, int, int]) -> None:
    rows, columns, depth = shape
    a, b = random(rows, depth), random(columns, depth, seed=1).T

    assert_close(product(a, b, instruction_set=name), a.double() @ b.double())


@pytest.mark.parametrize("name", SETS)
def test_what_is_no_number_shows(name: str) -> None:
    a, b = random(30, 50), random(50, 40, seed=1)
    a[3, 7], b[9, 5] = torch.nan, torch.inf

    out = product(a, b, instruction_set=name)

    assert not out[3].isfinite().any()
    assert not out[:, 5].isfinite().any()
    assert out.isfinite().sum() == 29 * 39


@pytest.mark.parametrize("name", SETS)
def test_a_projection_and_its_gradients(name: str) -> None:
    inputs, grad = (random(100, 96), random(144, 96, seed=1)), random(100, 144, seed=2)

    def results(run: object, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = tuple(x.detach().requires_grad_() for x in leaves)
        out = run(*leaves)
        return (out, *torch.autograd.grad(out, leaves, grad.to(out.dtype)))

    ours = results(lambda x, w: linear(x, w, instruction_set=name), *inputs)

    for one, other in zip(ours, results(F.linear, *(x.double() for x in inputs)), strict=True):
        assert_close(one, other)


def test_threads_change_no_bit() -> None:
    a, b = random(700, 900), random(800, 900, seed=1).T
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            found.append([product(a, b, instruction_set=name) for name in SETS])
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("columns", "depth"), [(300, 900), (64, 37), (96, 2112), (64, 288), (33, 384), (32, 5)])
def test_a_row_has_the_same_bits_whatever_rows_are_with_it(name: str, columns: int, depth: int) -> None:
    a, weight = random(200, depth), random(columns, depth, seed=1)
    whole = product(a, weight.T, instruction_set=name)

    for first, end in [(n, n + rows) for n in (0, 3, 77) for rows in (*range(1, 35), 96, 97, 110)]:
        assert torch.equal(product(a[first:end], weight.T, instruction_set=name), whole[first:end])


@pytest.mark.parametrize("num_rows", [1, 5, 60])
def test_a_layer_multiplies_natively_with_and_without_gradients(num_rows: int) -> None:
    layer, x = Linear(64, 32, bias=True), random(num_rows, 64)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)

    trained = layer(x)
    with torch.no_grad():
        decoded = layer(x)

    assert torch.equal(decoded, trained)
    assert torch.equal(trained, product(x, layer.weight.T) + layer.bias)
    trained.sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((32,), float(num_rows)))


def test_other_matrices_take_torchs_way() -> None:
    a, b = random(3, 4), random(4, 5, seed=1)
    assert multiplies_natively(a, b) == (instruction_sets() != ["portable"])
    assert not multiplies_natively(a.double(), b.double())
    assert not multiplies_natively(a[None], b)
    with torch.autocast("cpu", torch.bfloat16):
        assert not multiplies_natively(a, b)

    out = torch.ones(3, 5, dtype=torch.float64)
    product(a.double(), b.double(), out_MN=out, add=True)

    torch.testing.assert_close(out, a.double() @ b.double() + 1)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_matrices_have_empty_products(shape: tuple[int, int, int]) -> None:
    rows, columns, depth = shape
    assert torch.equal(product(torch.empty(rows, depth), torch.empty(depth, columns)), torch.zeros(rows, columns))


@pytest.mark.parametrize("num_rows", [0, 1, 9, 17, 130])
def test_projections_of_one_input_have_the_bits_that_each_has_alone(num_rows: int) -> None:
    layers, x = [Linear(96, 48, bias=True), Linear(96, 50), Linear(96, 16)], random(num_rows, 96)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)

    with torch.no_grad():
        outs = project(x, *layers)
        assert all(torch.equal(out, layer(x)) for out, layer in zip(outs, layers, strict=True))
    trained = project(x, *layers)
    assert all(torch.equal(one, other) for one, other in zip(outs, trained, strict=True))
    assert all(out.requires_grad for out in trained)


@pytest.mark.parametrize("width", [96, 50])
@pytest.mark.parametrize("num_rows", [0, 1, 9, 17, 130])
def test_a_gated_projection_has_the_bits_of_its_parts(num_rows: int, width: int) -> None:
    gate, up, x = Linear(64, width), Linear(64, width), random(num_rows, 64)
    for layer in (gate, up):
        torch.nn.init.normal_(layer.weight)

    with torch.no_grad():
        assert torch.equal(project_gated(x, gate, up), gated(gate(x), up(x)))


def test_hooks_of_projections_are_called() -> None:
    layers, x = [Linear(64, 32), Linear(64, 32)], random(3, 64)
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    layers[1].register_forward_hook(lambda _, __, out: out + 1)

    with torch.no_grad():
        _, second = project(x, *layers)
        assert torch.equal(second, linear(x, layers[1].weight) + 1)
        assert torch.equal(project_gated(x, *layers), gated(layers[0](x), layers[1](x)))


@pytest.mark.parametrize("change", [lambda x: x[:, ::2], lambda x: x[:1, :1].expand(8, 64), lambda x: x.T[:64].T])
def test_factors_may_lie_in_any_way(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, weight = change(random(8, 128)), change(random(8, 128, seed=1))
    with torch.no_grad():
        assert_close(linear(x, weight), x.double() @ weight.double().T)
        assert_close(linear(random(8, 64), weight), random(8, 64).double() @ weight.double().T)


@pytest.mark.parametrize("shape", [(100, 64, 0), (8, 0, 4), (0, 64, 4)], ids=str)
def test_empty_projections_are_empty_or_zero(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    with torch.no_grad():
        assert torch.equal(linear(torch.empty(rows, depth), torch.empty(columns, depth)), torch.zeros(rows, columns))


def test_a_projection_of_another_class_is_called() -> None:
    class Doubled(Linear):
        def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x_TI)

    layers, x = [Linear(64, 32), Doubled(64, 32), Linear(64, 32)], random(3, 64)
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    layers[2].register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))

    with torch.no_grad():
        _, doubled, shifted = project(x, *layers)
        assert torch.equal(doubled, 2 * linear(x, layers[1].weight))
        assert torch.equal(shifted, linear(x + 1, layers[2].weight))
