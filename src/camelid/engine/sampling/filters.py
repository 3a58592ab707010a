"""Which tokens of a distribution can be drawn. Each filter drops tokens, and keeps or drops equal scores together.

Shape suffixes: B sequences, V vocabulary, C best-scoring tokens of a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from torch import Tensor

NUM_CANDIDATES = 1024
"""Best-scoring tokens that top-k and top-p look at first. All of a vocabulary of 49,152 are sorted in 3.9 ms a row,
these are found in 0.4 ms, and they nearly always suffice; where they do not, all are sorted."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Factors of logits are kept within, so that fp32 neither overflows nor loses the order of the tokens."""


def apply_temperature(logits_BV: Tensor, temperatures: Rows[float]) -> Tensor:
    """Logits divided by the temperature, shifted so that the greatest of each row is 0."""
    temperatures_B1 = logits_BV.new_tensor([min(max(t, SMALLEST), LARGEST) for t in temperatures])[:, None]
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperatures_B1


def top_k_top_p_threshold(scores_BV: Tensor, top_k: Rows[int], top_p: Rows[float]) -> Tensor:
    """The score of the last token kept by top-k and then top-p; -inf where a row keeps all.

    Top-k keeps the k best scores. Of these, top-p keeps the fewest best whose probability together, as a share of what
    top-k kept, reaches p (Holtzman et al. 2019, §3.1). The best token is always kept.

    Args:
        scores_BV: logits after the temperature.
        top_k: per row; 0 keeps all.
        top_p: per row, in (0, 1]; 1 keeps all.

    Returns:
        [B].
    """
    thresholds_B = scores_BV.new_full((len(top_k),), -math.inf)
    rows = [row for row, (k, p) in enumerate(zip(top_k, top_p, strict=True)) if k > 0 or p < 1]
    for num_candidates in (NUM_CANDIDATES, scores_BV.shape[1]):
        if not rows:
            break
        picked = torch.tensor(rows, device=scores_BV.device)
        found_B, is_exact_B = _threshold_among(
            scores_BV[picked], [top_k[row] for row in rows], [top_p[row] for row in rows], num_candidates
        )
        thresholds_B[picked] = found_B
        rows = [row for row, is_exact in zip(rows, is_exact_B.tolist(), strict=True) if not is_exact]
    return thresholds_B


def _threshold_among(
    scores_BV: Tensor, top_k: Rows[int], top_p: Rows[float], num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Thresholds found among the best candidates [B], and whether all tokens would give the same ones [B]."""
    vocab_size = scores_BV.shape[1]
    num_candidates = min(num_candidates, vocab_size)
    if num_candidates == vocab_size:
        best_BC = scores_BV.sort(dim=-1, descending=True).values
    else:
        best_BC = scores_BV.topk(num_candidates, dim=-1).values
    device = scores_BV.device
    k_B1 = torch.tensor([min(k or vocab_size, vocab_size) for k in top_k], device=device)[:, None]
    p_B1 = torch.tensor([p if p < 1 else math.inf for p in top_p], dtype=torch.float64, device=device)[:, None]
    kth_B1 = best_BC.gather(1, (k_B1 - 1).clamp(max=num_candidates - 1))

    has_top_k_B1 = k_B1 < vocab_size
    kept_BC = best_BC.masked_fill(best_BC < kth_B1, -math.inf).double()
    total_B1 = torch.where(
        has_top_k_B1, kept_BC.logsumexp(1, keepdim=True), scores_BV.logsumexp(1, keepdim=True).double()
    )
    mass_BC = (kept_BC - total_B1).exp()
    is_kept_BC = (mass_BC.cumsum(1) - mass_BC < p_B1) & (kept_BC > -math.inf)
    is_kept_BC[:, 0] = True
    thresholds_B = best_BC.masked_fill(~is_kept_BC, math.inf).amin(1)

    # What scores like the last candidate may go on among the tokens that were not looked at.
    last_B1 = best_BC[:, -1:]
    is_exact_B1 = (thresholds_B[:, None] > last_B1) & (~has_top_k_B1 | (kth_B1 > last_B1))
    return thresholds_B, is_exact_B1[:, 0] | (num_candidates == vocab_size)


def min_p_threshold(scores_BV: Tensor, min_p: Rows[float]) -> Tensor:
    """The score of a token with min_p times the best token's probability, [B] (Nguyen et al. 2024, §3)."""
    return scores_BV.amax(dim=-1) + scores_BV.new_tensor([math.log(p) if p > 0 else -math.inf for p in min_p])


def top_n_sigma(scores_V: Tensor, n: float) -> Tensor:
    """Keep what scores at most n standard deviations below the best (Tang et al. 2024, arXiv 2411.07641, §3).

    The deviation is that of all scores that are not -inf; the temperature cancels out.
    """
    deviation = scores_V[scores_V > -math.inf].std(correction=0)
    return scores_V.masked_fill(scores_V < scores_V.max() - n * deviation, -math.inf)


def typical(scores_V: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose information is nearest to the entropy and that together have the probability p.

    Meister et al. 2022, "Locally Typical Sampling", arXiv 2202.00666, §4.
    """
    log_p_V = scores_V.double().log_softmax(-1)
    p_V = log_p_V.exp()
    entropy = -(p_V * log_p_V.masked_fill(p_V == 0, 0)).sum()
    distance_V = (-log_p_V - entropy).abs()
    nearest_V, order_V = distance_V.sort()
    num_before = int((p_V[order_V].cumsum(0) < p).sum())
    return scores_V.masked_fill(distance_V > nearest_V[min(num_before, len(nearest_V) - 1)], -math.inf)


def exclude_top_choices(scores_V: Tensor, threshold: float) -> Tensor:
    """Drop all tokens whose probability reaches the threshold, but for the least likely of them.

    XTC, as its author defines it (text-generation-webui, pull request 6335).
    """
    p_V = scores_V.softmax(-1)
    is_top_V = p_V >= threshold
    if int(is_top_V.sum()) < 2:
        return scores_V
    return scores_V.masked_fill(p_V > p_V[is_top_V].min(), -math.inf)


def below_surprise(scores_V: Tensor, mu: float) -> Tensor:
    """Keep tokens whose surprise -log2 p is at most mu, and the best (Basu et al. 2021, arXiv 2007.14966, Alg. 2)."""
    surprise_V = -scores_V.double().log_softmax(-1) / math.log(2)
    return scores_V.masked_fill(surprise_V > max(mu, float(surprise_V.min())), -math.inf)


def next_mu(kept_V: Tensor, token: int, mu: float, tau: float, eta: float) -> float:
    """Mirostat's next bound: mu less eta times how much the drawn token's surprise exceeds tau."""
    surprise = -float(kept_V.double().log_softmax(-1)[token]) / math.log(2)
    return mu - eta * (surprise - tau)
