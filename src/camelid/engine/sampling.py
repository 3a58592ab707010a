"""Choosing the next token of each sequence.

A row's token depends on its own logits, settings, seed and position alone, never on the rows beside it. Each filter is
a threshold: tokens that score below it are dropped, so equal scores are kept or dropped together.

Shape suffixes: B sequences, V vocabulary, C best-scoring tokens of a row.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from torch import Tensor

    from camelid.engine.sequence import Sequence

NUM_CANDIDATES = 1024
"""Best-scoring tokens that top-k and top-p look at first. All of a vocabulary of 49,152 are sorted in 3.9 ms a row,
these are found in 0.4 ms, and they nearly always suffice; where they do not, all are sorted."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Factors of logits are kept within, so that fp32 neither overflows nor loses the order of the tokens."""


@torch.inference_mode()
def sample(logits_BV: Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """The next token of each sequence; None where the logits hold NaN, or no finite greatest score.

    Args:
        logits_BV: fp32 scores.
        sequences: one per row.
    """
    params = [sequence.params for sequence in sequences]
    logits_BV = penalize_repetition(logits_BV, sequences)
    best_B, greedy_B = logits_BV.max(dim=-1)
    usable = best_B.isfinite().tolist()
    tokens: list[int] = greedy_B.tolist()
    drawing = [row for row, p in enumerate(params) if p.temperature > 0 and usable[row]]
    if drawing:
        scores_BV = logits_BV if len(drawing) == len(params) else logits_BV[drawing]
        scores_BV = apply_temperature(scores_BV, [params[row].temperature for row in drawing])
        thresholds_B = torch.maximum(
            top_k_top_p_threshold(
                scores_BV, [params[row].top_k for row in drawing], [params[row].top_p for row in drawing]
            ),
            min_p_threshold(scores_BV, [params[row].min_p for row in drawing]),
        )
        scores_BV = scores_BV.masked_fill(scores_BV < thresholds_B[:, None], -math.inf)
        places = [(sequences[row].seed, sequences[row].num_generated) for row in drawing]
        for row, token in zip(drawing, draw(scores_BV, places), strict=True):
            tokens[row] = token
    return [token if ok else None for token, ok in zip(tokens, usable, strict=True)]


def penalize_repetition(logits_BV: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Divide positive and multiply negative logits of tokens already in the sequence (Keskar et al. 2019, §4.1)."""
    penalized = [row for row, sequence in enumerate(sequences) if sequence.params.repetition_penalty != 1]
    if not penalized:
        return logits_BV
    logits_BV = logits_BV.clone()
    for row in penalized:
        seen = torch.tensor(sequences[row].token_ids, device=logits_BV.device)
        seen = seen[seen < logits_BV.shape[1]]  # a model may read tokens that it never writes
        penalty = min(max(sequences[row].params.repetition_penalty, SMALLEST), LARGEST)
        logits = logits_BV[row, seen]
        logits_BV[row, seen] = torch.where(logits > 0, logits / penalty, logits * penalty)
    return logits_BV


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
    k_B1 = torch.tensor([k or vocab_size for k in top_k], device=device)[:, None]
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


def draw(scores_BV: Tensor, places: Rows[tuple[int, int]]) -> list[int]:
    """A token of each row's softmax: the one with the greatest sum of score and Gumbel noise (Gumbel 1954).

    Rounding that depends on the batch moves a score by some 1e-5, and the greatest sum changes hands about as rarely.
    (Inverting the cumulative distribution adds up the roundings of the whole vocabulary: of eight replies of 60 tokens
    from SmolLM2-135M at temperature 1, one or two came out otherwise alone than in a batch.)

    Args:
        scores_BV: -inf where a filter dropped the token.
        places: (seed, position in the reply) of each row, which name its noise.
    """
    num_kept = int((scores_BV > -math.inf).sum(dim=-1).max())
    kept_BC, tokens_BC = scores_BV, torch.arange(scores_BV.shape[1], device=scores_BV.device)[None]
    if num_kept <= NUM_CANDIDATES:
        # A token's noise hangs on nothing but its place and number: what was dropped needs none. For 32,000 tokens and
        # 64 rows it takes 57 ms, four times as long as a step of a 15M model.
        kept_BC, tokens_BC = scores_BV.topk(num_kept, dim=-1)
    winners_B1 = (kept_BC + gumbel_noise(places, tokens_BC)).argmax(dim=-1, keepdim=True)
    tokens: list[int] = tokens_BC.expand(len(places), -1).gather(1, winners_B1)[:, 0].tolist()
    return tokens


def gumbel_noise(places: Rows[tuple[int, int]], tokens_BC: Tensor) -> Tensor:
    """Standard Gumbel noise for some tokens at each place (seed, position in the reply): float64 [B, C].

    A mixed counter, as counter-based generators are built (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
    2, 3"): there is no state to keep, restore or share, so a preempted or batched sequence draws what it would alone.
    The mixing is SplitMix64's (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators", Fig. 14).

    Args:
        places: one per row.
        tokens_BC: int64 token ids; a single row stands for all.
    """
    keys = [
        hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
        for seed, position in places
    ]
    keys_B = torch.tensor([int.from_bytes(key, "little", signed=True) for key in keys], device=tokens_BC.device)
    bits_BC = keys_B[:, None] + (tokens_BC + 1) * _signed(0x9E3779B97F4A7C15)
    bits_BC = (bits_BC ^ _shifted(bits_BC, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits_BC = (bits_BC ^ _shifted(bits_BC, 27)) * _signed(0x94D049BB133111EB)
    bits_BC = bits_BC ^ _shifted(bits_BC, 31)
    uniform_BC = (_shifted(bits_BC, 12).double() + 0.5) * 2**-52
    return -(-uniform_BC.log()).log()


def _shifted(bits: Tensor, count: int) -> Tensor:
    """A shift to the right that fills with zeros; torch has no unsigned 64-bit arithmetic."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits
