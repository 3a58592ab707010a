"""Cross-entropy from hidden states and the output matrix, without ever holding all logits.

Shape suffixes: T tokens, N those of them that count, C tokens of one chunk, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.autograd.function import once_differentiable

from camelid.kernels.elementwise import softmax_shares
from camelid.kernels.product import product

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = {"cpu": 64 << 20}
"""Of fp32 logits that live at once, by kind of device: 524 tokens of a 32k vocabulary on a CPU, where products of half
as many are 5% slower. An accelerator needs longer products to be busy."""
ACCELERATOR_CHUNK_BYTES = 1 << 30
MIN_CHUNK_TOKENS = 128
"""Below it the products themselves slow down: on a CPU by a fifth at 64 tokens."""


Softmax = Callable[["Tensor", "Tensor", float], tuple["Tensor", "Tensor", "Tensor", "Tensor"]]


class LossSums(NamedTuple):
    """Sums over the tokens of one forward pass, fp32 scalars; a caller divides by the weight of a whole step."""

    objective: Tensor
    """Σ w · (cross-entropy + z_loss · logsumexp²): what is differentiated."""
    cross_entropy: Tensor
    """Σ w · cross-entropy in nats: what is reported; carries no gradient."""


def chunked_cross_entropy(
    hidden_TE: Tensor,
    output_VE: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    *,
    z_loss: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    chunk_tokens: int | None = None,
    compiled: bool = False,
) -> LossSums:
    """Weighted cross-entropy of `hidden · outputᵀ`, one chunk of tokens at a time.

    The gradient of a chunk is taken while its logits are at hand, so that nothing is computed twice: besides the two
    gradients only `chunk_tokens · V` fp32 numbers live. A backward pass through it is possible once.

    Args:
        hidden_TE: final hidden states.
        output_VE: the output matrix, or the embedding tied to it.
        targets_T: int64; ignored where the weight is 0.
        weights_T: fp32, what each token counts.
        z_loss: factor of logsumexp², which keeps the logits from drifting (PaLM, Chowdhery et al. 2022, arXiv
            2204.02311, §5).
        compute_dtype: of the matrix products; None: the hidden states' own. Softmax and sums are fp32 in any case.
        chunk_tokens: tokens of one chunk; None: `default_chunk_tokens`.
        compiled: let torch.compile make few passes over the logits of many; on a CPU it changes nothing.
    """
    if chunk_tokens is None:
        chunk_tokens = default_chunk_tokens(output_VE.shape[0], output_VE.device)
    dtype = compute_dtype or hidden_TE.dtype
    counted_N = weights_T.nonzero()[:, 0]
    if len(counted_N) < len(weights_T):
        hidden_TE, targets_T, weights_T = hidden_TE[counted_N], targets_T[counted_N], weights_T[counted_N]
    apply = cast("Any", _ChunkedCrossEntropy.apply)
    softmax = _compiled_softmax() if compiled and hidden_TE.device.type != "cpu" else _softmax
    return LossSums(*apply(hidden_TE, output_VE, targets_T, weights_T, z_loss, dtype, chunk_tokens, softmax))


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Tokens whose logits live at once."""
    num_bytes = CHUNK_BYTES.get(device.type, ACCELERATOR_CHUNK_BYTES)
    return max(MIN_CHUNK_TOKENS, num_bytes // (4 * vocab_size))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes both gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        output_VE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        chunk_tokens: int,
        softmax: Softmax,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_output = ctx.needs_input_grad[:2]
        hidden_grad_NE = torch.empty_like(hidden_NE) if wants_hidden else None
        output_grad_VE = torch.empty_like(output_VE, dtype=torch.float32) if wants_output else None
        typed_VE = output_VE.to(dtype)
        # One memory for all chunks: fresh pages would cost a CPU a fifth of the product that fills them.
        space_CV = hidden_NE.new_empty((min(chunk_tokens, len(hidden_NE)), len(output_VE)), dtype=dtype)
        cross_entropies, logsumexps = [], []
        for begin in range(0, len(hidden_NE), chunk_tokens):
            chunk = slice(begin, begin + chunk_tokens)
            hidden_CE = hidden_NE[chunk].to(dtype)
            logits_CV = product(hidden_CE, typed_VE.T, out_MN=space_CV[: len(hidden_CE)])
            weights_C = weights_N[chunk]
            cross_entropy_C, logsumexp_C, grad_CV, factor_C = softmax(logits_CV, targets_N[chunk], z_loss)
            cross_entropies.append(weights_C * cross_entropy_C)
            logsumexps.append(weights_C * logsumexp_C.square())
            # The scale goes to the E-wide side of both products, which saves a pass over the V-wide one.
            scale_C1 = (weights_C * factor_C)[:, None]
            if hidden_grad_NE is not None:
                hidden_grad_NE[chunk] = product(grad_CV, typed_VE) * scale_C1
            if output_grad_VE is not None:
                _add_product(output_grad_VE, grad_CV.T, (hidden_CE * scale_C1).to(dtype), first=begin == 0)
        if output_grad_VE is not None and not len(hidden_NE):
            output_grad_VE.zero_()
        ctx.hidden_grad_NE = hidden_grad_NE
        ctx.output_grad_VE = None if output_grad_VE is None else output_grad_VE.to(output_VE.dtype)
        cross_entropy = (
            torch.cat(cross_entropies).sum() if cross_entropies else hidden_NE.new_zeros((), dtype=torch.float32)
        )
        objective = cross_entropy.clone()
        if z_loss and logsumexps:
            objective += z_loss * torch.cat(logsumexps).sum()
        ctx.mark_non_differentiable(cross_entropy)
        return objective, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, objective_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            grad if grad is None else grad.mul_(objective_grad) for grad in (ctx.hidden_grad_NE, ctx.output_grad_VE)
        ]
        del ctx.hidden_grad_NE, ctx.output_grad_VE
        return *grads, None, None, None, None, None, None


def _softmax(logits_CV: Tensor, targets_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a chunk's logits, which are overwritten, say of its targets.

    Returns:
        Cross-entropies fp32 [C]; logsumexps fp32 [C]; the gradients of the tokens' objectives but for a factor, typed
        like the logits [C, V]; that factor, fp32 [C].
    """
    dtype, logits_CV, targets_C1 = logits_CV.dtype, logits_CV.float(), targets_C[:, None]
    target_logits_C = logits_CV.gather(1, targets_C1)[:, 0]
    total_C, logsumexp_C = softmax_shares(logits_CV)
    pull_C = 1 + 2 * z_loss * logsumexp_C
    grad_CV = logits_CV.scatter_add_(1, targets_C1, -(total_C / pull_C)[:, None]).to(dtype)
    return logsumexp_C - target_logits_C, logsumexp_C, grad_CV, pull_C / total_C


def _plain_softmax(logits_CV: Tensor, targets_C: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same without overwriting, element by element: what a compiler can fuse."""
    scores_CV = logits_CV.float()
    logsumexp_C = scores_CV.logsumexp(1)
    is_target_CV = torch.arange(scores_CV.shape[1], device=scores_CV.device) == targets_C[:, None]
    target_logits_C = scores_CV.gather(1, targets_C[:, None])[:, 0]
    pull_C = 1 + 2 * z_loss * logsumexp_C
    probs_CV = (scores_CV - logsumexp_C[:, None]).exp()
    grad_CV = torch.where(is_target_CV, probs_CV - pull_C.reciprocal()[:, None], probs_CV).to(logits_CV.dtype)
    return logsumexp_C - target_logits_C, logsumexp_C, grad_CV, pull_C


@cache
def _compiled_softmax() -> Softmax:
    return cast("Softmax", torch.compile(_plain_softmax, fullgraph=True))


def _add_product(sum_VE: Tensor, a_VC: Tensor, b_CE: Tensor, *, first: bool) -> None:
    if a_VC.dtype == sum_VE.dtype:
        product(a_VC, b_CE, out_MN=sum_VE, add=not first)
    elif first:
        sum_VE.copy_(a_VC @ b_CE)
    else:
        sum_VE += a_VC @ b_CE
