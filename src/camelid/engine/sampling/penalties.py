"""What is added to or taken from the logits before any token is dropped.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.engine.sampling.filters import LARGEST, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor


def add_bias(logits_V: Tensor, bias: Sequence[tuple[int, float]]) -> None:
    """Add a number to some tokens' logits, in place."""
    ids, values = zip(*bias, strict=True)
    logits_V[torch.tensor(ids, device=logits_V.device)] += logits_V.new_tensor(values)


def penalize_repetition(logits_V: Tensor, seen: Sequence[int], penalty: float) -> None:
    """Divide positive and multiply negative logits of tokens seen before, in place (Keskar et al. 2019, §4.1)."""
    # Tokens that only a prompt has (an image's) are never scored.
    ids = torch.tensor([token for token in seen if token < len(logits_V)], dtype=torch.int64, device=logits_V.device)
    penalty = min(max(penalty, SMALLEST), LARGEST)
    logits = logits_V[ids]
    logits_V[ids] = torch.where(logits > 0, logits / penalty, logits * penalty)


def penalize_generated(logits_V: Tensor, generated: Sequence[int], presence: float, frequency: float) -> None:
    """Take `presence` once and `frequency` for each occurrence off the logits of generated tokens, in place.

    The formula of OpenAI's API reference ("frequency and presence penalties").
    """
    if generated:
        ids, counts = torch.unique(torch.tensor(generated, device=logits_V.device), return_counts=True)
        logits_V[ids] -= presence + frequency * counts.to(logits_V.dtype)


def penalize_continuation(
    logits_V: Tensor,
    token_ids: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Collection[int],
) -> None:
    """Take multiplier · base^(n - allowed_length) off the tokens that would repeat n ≥ `allowed_length` + 1 in a row.

    n counts the tokens at the end that have stood before the same token earlier. DRY, as its author defines it
    (text-generation-webui, pull request 5677); in place.

    Args:
        logits_V: the scores.
        token_ids: prompt and reply.
        multiplier: of every penalty.
        base: growth of the penalty with each repeated token.
        allowed_length: repeats shorter than this are free.
        breakers: tokens that no repeat goes across.
    """
    penalties = {
        token: min(multiplier * base ** min(length - allowed_length, MAX_EXPONENT), LARGEST)
        for token, length in repeated_lengths(token_ids, breakers).items()
        if length >= allowed_length and token < len(logits_V)
    }
    if penalties:
        ids = torch.tensor(list(penalties), device=logits_V.device)
        logits_V[ids] -= logits_V.new_tensor(list(penalties.values()))


MAX_EXPONENT = 64
"""Of DRY's base. Longer repeats are hardly less likely, and a float ends at 2^1024."""


def repeated_lengths(token_ids: Sequence[int], breakers: Collection[int]) -> dict[int, int]:
    """Token → how many of the last tokens stood before it already somewhere, where any did.

    The common suffixes are found in linear time by the Z algorithm (Gusfield 1997, §1.4) on the reversed sequence.
    """
    backward = token_ids[::-1]
    unbroken = next((i for i, token in enumerate(backward) if token in breakers), len(backward))
    lengths: dict[int, int] = {}
    if unbroken == 0:
        return lengths
    common = [0] * len(backward)
    left = right = 0
    for i in range(1, len(backward)):
        length = min(right - i, common[i - left]) if i < right else 0
        while i + length < len(backward) and backward[length] == backward[i + length]:
            length += 1
        common[i] = length
        if i + length > right:
            left, right = i, i + length
        following = backward[i - 1]
        if length and following not in breakers:
            lengths[following] = max(lengths.get(following, 0), min(length, unbroken))
    return lengths
