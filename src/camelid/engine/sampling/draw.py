"""The draw: a token of each row's distribution, from noise that hangs on the request's seed and position alone.

Shape suffixes: B sequences, V vocabulary, C some tokens of a row.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch

from camelid.engine.sampling.filters import NUM_CANDIDATES
from camelid.kernels.elementwise import finds_natively, greatest

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from torch import Tensor


GROUP = 128
"""Tokens of a group in `best_tokens`."""


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


def best_tokens(scores_BV: Tensor) -> tuple[list[float], list[int]]:
    """The greatest score of each row and the first token that has it; of a row with NaN, NaN and any such token.

    torch takes 14 times as long to find a place as to find the greatest (16 rows of 32,000 scores, one thread: 435 and
    32 µs), so it takes the tokens in groups, of which only the best is looked at for the token: 70 µs, and 410 behind a
    forward pass. The native kernel takes 35 and 150.
    """
    if finds_natively(scores_BV):
        return greatest(scores_BV)
    num_groups = scores_BV.shape[1] // GROUP
    if num_groups < 2 or scores_BV.device.type != "cpu":
        best_B, token_B = scores_BV.max(dim=-1)
        return best_B.tolist(), token_B.tolist()
    grouped_BGC = scores_BV[:, : num_groups * GROUP].view(len(scores_BV), num_groups, GROUP)
    best_B, group_B = grouped_BGC.amax(-1).max(dim=-1)
    token_B = group_B * GROUP + grouped_BGC[torch.arange(len(scores_BV), device=scores_BV.device), group_B].argmax(-1)
    if num_groups * GROUP < scores_BV.shape[1]:
        last_best_B, last_token_B = scores_BV[:, num_groups * GROUP :].max(dim=-1)
        is_last_B = (last_best_B > best_B) | last_best_B.isnan()
        best_B = torch.where(is_last_B, last_best_B, best_B)
        token_B = torch.where(is_last_B, num_groups * GROUP + last_token_B, token_B)
    return best_B.tolist(), token_B.tolist()


def gumbel_noise(places: Rows[tuple[int, int]], tokens_BC: Tensor) -> Tensor:
    """Standard Gumbel noise for some tokens at each place (seed, position in the reply): float64 [B, C].

    A mixed counter, as counter-based generators are built (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
    2, 3"): there is no state to keep, restore or share, so a preempted or batched sequence draws what it would alone.
    The mixing is SplitMix64's (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators", Fig. 14).

    Args:
        places: one per row.
        tokens_BC: int64 token ids; a single row stands for all.
    """
    keys_B = torch.tensor([_key(*place) for place in places], device=tokens_BC.device)
    bits_BC = keys_B[:, None] + (tokens_BC + 1) * _signed(0x9E3779B97F4A7C15)
    bits_BC = (bits_BC ^ _shifted(bits_BC, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits_BC = (bits_BC ^ _shifted(bits_BC, 27)) * _signed(0x94D049BB133111EB)
    bits_BC = bits_BC ^ _shifted(bits_BC, 31)
    uniform_BC = (_shifted(bits_BC, 12).double() + 0.5) * 2**-52
    return -(-uniform_BC.log()).log()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for a place, independent of its Gumbel noise."""
    digest = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little"), person=b"u")
    return int.from_bytes(digest.digest(), "little") / 2**64


def _key(seed: int, position: int) -> int:
    digest = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """A shift to the right that fills with zeros; torch has no unsigned 64-bit arithmetic."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits
