from __future__ import annotations

import pytest
import torch
from tiny_run import VOCAB_SIZE, tiny_model
from torch.nn import functional as F

from camelid.model.attention import PackedContext
from camelid.train.losses import _plain_softmax, _softmax, chunked_cross_entropy


def problem(seed: int = 0, tokens: int = 37, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(tokens, 16, generator=generator) * scale).requires_grad_()
    output = torch.randn(50, 16, generator=generator).requires_grad_()
    targets = torch.randint(50, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) > 0.3)
    return hidden, output, targets, weights


def plain(hidden, output, targets, weights, z_loss=0.0):
    logits = hidden @ output.T
    objective = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    return objective + z_loss * (weights * logits.logsumexp(-1).square()).sum()


@pytest.mark.parametrize("chunk_tokens", [1, 5, 37, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_are_those_of_all_logits_at_once(chunk_tokens: int, z_loss: float) -> None:
    hidden, output, targets, weights = problem()
    expected = plain(hidden, output, targets, weights, z_loss) / weights.sum()
    expected_grads = torch.autograd.grad(expected, (hidden, output))

    sums = chunked_cross_entropy(hidden, output, targets, weights, z_loss=z_loss, chunk_tokens=chunk_tokens)
    loss = sums.objective / weights.sum()
    grads = torch.autograd.grad(loss, (hidden, output))

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad - expected_grad).norm() <= 1e-6 * expected_grad.norm()


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_what_a_compiler_is_given_says_the_same(z_loss: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, targets = torch.randn(40, 60, generator=generator) * 9, torch.randint(60, (40,), generator=generator)

    *losses, gradients, factors = _softmax(logits.clone(), targets, z_loss)

    *expected_losses, expected_gradients, expected_factors = _plain_softmax(logits.clone(), targets, z_loss)
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(gradients * factors[:, None], expected_gradients * expected_factors[:, None])


def test_steep_logits_are_as_exact_as_the_plain_loss() -> None:
    hidden, output, targets, weights = problem(scale=30.0)
    truth = plain(*(x.double() for x in (hidden, output)), targets, weights)
    error = abs(chunked_cross_entropy(hidden, output, targets, weights, chunk_tokens=5).objective - truth)
    assert error <= 2e-7 * truth


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gets_the_gradients_of_its_plain_logits(tied: bool) -> None:
    model = tiny_model(tied=tied)
    ids = torch.randint(VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(1))
    targets, weights = ids.roll(-1), torch.ones(24)
    context = PackedContext([16, 8])

    F.cross_entropy(model.logits(model(ids, context.positions(), context)), targets).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    hidden = model(ids, context.positions(), context)
    (
        chunked_cross_entropy(hidden, model.output_matrix.weight, targets, weights, chunk_tokens=7).objective / 24
    ).backward()

    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_the_reported_loss_is_without_the_z_term() -> None:
    hidden, output, targets, weights = problem()
    sums = chunked_cross_entropy(hidden, output, targets, weights, z_loss=0.5)
    torch.testing.assert_close(sums.cross_entropy, plain(hidden, output, targets, weights).detach())
    assert not sums.cross_entropy.requires_grad


def test_targets_of_tokens_that_do_not_count_are_never_looked_at() -> None:
    hidden, output, targets, weights = problem()
    expected = chunked_cross_entropy(hidden, output, targets, weights).objective
    targets[weights == 0] = -100
    sums = chunked_cross_entropy(hidden, output, targets, weights)
    assert torch.equal(sums.objective, expected)
    (hidden_grad,) = torch.autograd.grad(sums.objective, hidden)
    assert not hidden_grad[weights == 0].any()


def test_a_batch_in_which_nothing_counts_adds_nothing() -> None:
    hidden, output, targets, weights = problem()
    sums = chunked_cross_entropy(hidden, output, targets, torch.zeros_like(weights), z_loss=0.1)
    grads = torch.autograd.grad(sums.objective, (hidden, output))
    assert sums.objective == 0
    assert not any(grad.any() for grad in grads)


def test_logits_as_far_apart_as_fp32_allows_give_a_finite_loss() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    output = torch.tensor([[1.0], [-1.0], [0.0]])
    sums = chunked_cross_entropy(hidden, output, torch.tensor([1, 1]), torch.ones(2))
    assert sums.objective.item() == pytest.approx(2e4)


def test_bfloat16_products_keep_fp32_sums() -> None:
    hidden, output, targets, weights = problem()
    sums = chunked_cross_entropy(hidden, output, targets, weights, compute_dtype=torch.bfloat16)
    expected = plain(hidden, output, targets, weights)
    assert sums.objective.dtype == torch.float32
    torch.testing.assert_close(sums.objective, expected, rtol=0.02, atol=0.02)
    grads = torch.autograd.grad(sums.objective, (hidden, output))
    assert [grad.dtype for grad in grads] == [torch.float32] * 2


def test_logits_of_all_tokens_never_live_at_once() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, output, targets, weights = problem(tokens=400)
    with Watch():
        chunked_cross_entropy(hidden, output, targets, weights, chunk_tokens=8).objective.backward()
    assert largest < 400 * 50 / 2
