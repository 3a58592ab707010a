"""Choosing the next token of each sequence.

A row's token depends on its own logits, settings, seed and position alone, never on the rows beside it. What a request
asks for is applied in this order:

1. added to the logits: `logit_bias`, `repetition_penalty`, `presence_penalty` and `frequency_penalty`, DRY
2. ruled out: `banned_token_ids`, `banned_strings`, stop tokens before `min_tokens`, what the grammar does not allow
3. `temperature`; 0 takes the best token that is left
4. `top_n_sigma`, `top_k`, `top_p`, `min_p`, `typical_p`, XTC; or mirostat in place of them
5. the draw

Shape suffixes: B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from camelid.engine.sampling.draw import best_tokens, draw, uniform
from camelid.engine.sampling.filters import (
    LARGEST,
    apply_temperature,
    below_surprise,
    exclude_top_choices,
    min_p_threshold,
    next_mu,
    top_k_top_p_threshold,
    top_n_sigma,
    typical,
)
from camelid.engine.sampling.penalties import (
    add_bias,
    penalize_continuation,
    penalize_generated,
    penalize_repetition,
)

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from torch import Tensor

    from camelid.engine.sequence import Sequence

NONE_LEFT = -1
"""In place of a token: everything has been ruled out."""


def sample(logits_BV: Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """The next token of each sequence; None where the logits hold NaN or no finite greatest score.

    `NONE_LEFT` where the request's own rules leave no token.

    Args:
        logits_BV: fp32 scores; left as they are.
        sequences: one per row.
    """
    best, tokens = best_tokens(logits_BV)
    usable = [math.isfinite(score) for score in best]
    if all(usable) and all(sequence.takes_best for sequence in sequences):
        return [*tokens]
    params = [sequence.params for sequence in sequences]
    adjusted = [row for row, sequence in enumerate(sequences) if sequence.adjusts_logits and usable[row]]
    if adjusted:
        logits_BV = logits_BV.clone()
        for row in adjusted:
            _adjust(logits_BV[row], sequences[row])
        best, tokens = best_tokens(logits_BV)
        for row, score in enumerate(best):
            if score == -math.inf:
                tokens[row] = NONE_LEFT
    drawing = [row for row, p in enumerate(params) if p.temperature > 0 and usable[row] and tokens[row] != NONE_LEFT]
    if drawing:
        scores_BV = logits_BV if len(drawing) == len(params) else logits_BV[drawing]
        for row, token in zip(drawing, _draw(scores_BV, [sequences[row] for row in drawing]), strict=True):
            tokens[row] = token
    return [token if ok else None for token, ok in zip(tokens, usable, strict=True)]


def _draw(logits_BV: Tensor, sequences: list[Sequence]) -> list[int]:
    params = [sequence.params for sequence in sequences]
    scores_BV = apply_temperature(logits_BV, [p.temperature for p in params])
    for row, p in enumerate(params):
        if p.top_n_sigma:
            scores_BV[row] = top_n_sigma(scores_BV[row], p.top_n_sigma)
    thresholds_B = torch.maximum(
        top_k_top_p_threshold(scores_BV, [p.top_k for p in params], [p.top_p for p in params]),
        min_p_threshold(scores_BV, [p.min_p for p in params]),
    )
    scores_BV = scores_BV.masked_fill(scores_BV < thresholds_B[:, None], -math.inf)
    places = [(sequence.seed, sequence.num_generated) for sequence in sequences]
    for row, p in enumerate(params):
        if p.typical_p < 1:
            scores_BV[row] = typical(scores_BV[row], p.typical_p)
        if p.xtc_probability and uniform(*places[row]) < p.xtc_probability:
            scores_BV[row] = exclude_top_choices(scores_BV[row], p.xtc_threshold)
        if p.mirostat_tau:
            scores_BV[row] = below_surprise(scores_BV[row], sequences[row].mirostat_mu)
    tokens = draw(scores_BV, places)
    for row, p in enumerate(params):
        if p.mirostat_tau:
            mu = sequences[row].mirostat_mu
            sequences[row].set_next_mu(next_mu(scores_BV[row], tokens[row], mu, p.mirostat_tau, p.mirostat_eta))
    return tokens


def _adjust(logits_V: Tensor, sequence: Sequence) -> None:
    """Steps 1 and 2 for one row, in place. Sums stay finite, so that what comes after can compare them."""
    p = sequence.params
    if p.logit_bias:
        add_bias(logits_V, p.logit_bias)
    if p.repetition_penalty != 1:
        penalize_repetition(logits_V, sequence.token_ids, p.repetition_penalty)
    if p.presence_penalty or p.frequency_penalty:
        generated = sequence.token_ids[sequence.num_prompt :]
        penalize_generated(logits_V, generated, p.presence_penalty, p.frequency_penalty)
    if p.dry_multiplier:
        penalize_continuation(
            logits_V,
            sequence.token_ids[-p.dry_range :] if p.dry_range else sequence.token_ids,
            multiplier=p.dry_multiplier,
            base=p.dry_base,
            allowed_length=p.dry_allowed_length,
            breakers=sequence.dry_breakers,
        )
    logits_V.clamp_(max=LARGEST)
    ruled_out = list(p.banned_token_ids)
    if sequence.num_generated < p.min_tokens:
        ruled_out += (token for token in sequence.stop_ids if token < len(logits_V))
    for text in sequence.banned_texts:
        ruled_out += text.completed_by(sequence.token_ids[sequence.num_prompt :])
    if ruled_out:
        logits_V[torch.tensor(ruled_out, device=logits_V.device)] = -math.inf
    if sequence.grammar is not None:
        sequence.grammar.mask(logits_V)
