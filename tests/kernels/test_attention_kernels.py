"""Native packed attention against torch's, one call per sequence, for every instruction set of this processor."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.kernels.attention import attention_runs_on, packed_attention, vector_widths
from camelid.model.attention import causal_attention

SETS = list(vector_widths())

pytestmark = pytest.mark.skipif(not SETS, reason="no attention kernel was built, or this processor runs none of them")

Tensors = tuple[torch.Tensor, ...]


def starts_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)])


def native(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], name: str) -> torch.Tensor:
    return packed_attention(q, k, v, starts_of(lengths), scale=0.2, instruction_set=name)


def per_sequence(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    return torch.cat([causal_attention(q[None], k[None], v[None], scale=0.2)[0] for q, k, v in parts])


def random_inputs(tokens: int, heads: tuple[int, int], dim: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """q, k, v and the gradient that comes back; q and k are slices of one tensor, as the model hands them over."""
    generator = torch.Generator().manual_seed(tokens)
    qk = torch.randn(tokens, sum(heads), dim, generator=generator, dtype=dtype)
    v, grad = (torch.randn(tokens, n, dim, generator=generator, dtype=dtype) for n in reversed(heads))
    q, k = qk.split(list(heads), 1)
    return q, k, v, grad


def results(attend, q, k, v, grad) -> Tensors:  # type: ignore[no-untyped-def]
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(1, 150)), min_size=1, max_size=7).filter(any),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    dim=st.sampled_from([16, 32, 48, 80]),
    name=st.sampled_from(SETS or [""]),
)
def test_values_and_gradients_are_those_of_a_call_per_sequence(
    lengths: list[int], heads: tuple[int, int], dim: int, name: str
) -> None:
    inputs = random_inputs(sum(lengths), heads, dim)

    got = results(lambda q, k, v: native(q, k, v, lengths, name), *inputs)

    exact = results(lambda q, k, v: per_sequence(q, k, v, lengths), *(x.double() for x in inputs))
    for one, other in zip(got, exact, strict=True):
        # Queries and keys of one token alone have no gradient; what rounding leaves is held to the inputs' size, 1.
        assert (one.double() - other).norm() <= 1e-6 * max(other.norm(), other.numel() ** 0.5)


@pytest.mark.parametrize("name", SETS)
def test_scores_of_hundreds_lose_no_more_than_with_torch(name: str) -> None:
    lengths = [70, 9]
    inputs = [10 * x for x in random_inputs(79, (2, 1), 32)]

    got = results(lambda q, k, v: native(q, k, v, lengths, name), *inputs)

    theirs = results(lambda q, k, v: per_sequence(q, k, v, lengths), *inputs)
    exact = results(lambda q, k, v: per_sequence(q, k, v, lengths), *(x.double() for x in inputs))
    for one, peer, other in zip(got, theirs, exact, strict=True):
        assert (one - other).norm() <= 2 * (peer - other).norm()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [1e4, 1e10, 1e30])
def test_huge_scores_are_no_more_than_a_choice_of_one_key(name: str, size: float) -> None:
    q, k, v, _ = random_inputs(40, (2, 1), 32)
    q = q * size

    out = native(q, k, v, [40], name)

    torch.testing.assert_close(out, per_sequence(q, k, v, [40]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_neighbours_and_threads_change_no_bit(name: str) -> None:
    lengths = [50, 7, 90]
    inputs = random_inputs(sum(lengths), (4, 2), 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = results(lambda q, k, v: native(q, k, v, lengths, name), *inputs)
        torch.set_num_threads(1)
        alone = [
            results(lambda q, k, v, n=n: native(q, k, v, [n], name), *part)
            for n, *part in zip(lengths, *(x.split(lengths) for x in inputs), strict=True)
        ]
    finally:
        torch.set_num_threads(before)

    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("place", ["q", "k", "v"])
def test_a_number_that_is_none_is_not_hidden(name: str, place: str) -> None:
    q, k, v, _ = random_inputs(20, (2, 2), 32)
    {"q": q, "k": k, "v": v}[place][5, 0, 3] = torch.nan

    out = native(q, k, v, [20], name)

    assert out[5, 0].isnan().any()
    assert out[:, 1].isfinite().all()


def test_other_dtypes_and_widths_are_left_to_torch() -> None:
    assert attention_runs_on(*random_inputs(4, (2, 2), 32)[:3])
    assert not attention_runs_on(*random_inputs(4, (2, 2), 12)[:3])
    assert not attention_runs_on(*random_inputs(4, (2, 2), 32, torch.float64)[:3])
