"""What the model itself thinks of tokens: logarithms of its softmax, before penalties, temperature and filters.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.engine.protocol import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def token_logprobs(logits_TV: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of one token per row, and of the row's likeliest.

    Args:
        logits_TV: fp32 scores.
        token_ids: one per row.
        num_top: how many of the likeliest.
    """
    log_p_TV = logits_TV.log_softmax(-1)
    chosen = log_p_TV.gather(1, torch.tensor(token_ids, device=logits_TV.device)[:, None])[:, 0].tolist()
    best = log_p_TV.topk(min(num_top, log_p_TV.shape[1]), dim=-1)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(
            token_ids, chosen, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
