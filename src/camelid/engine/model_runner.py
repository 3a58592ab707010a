"""One step on the device: chunks of sequences in, scores of the tokens to come out."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from camelid.engine.kv_cache import PagedContext

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.engine.kv_cache import PagedKVCache
    from camelid.engine.sequence import Chunk
    from camelid.model.base import LanguageModel


class ModelRunner:
    """Runs chunks of any sequences in one forward pass over the paged cache."""

    def __init__(self, model: LanguageModel, cache: PagedKVCache) -> None:
        self.model = model
        self.cache = cache

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute the chunks' tokens, keep their keys and values, and score what follows the chunks that are last.

        Returns:
            Logits fp32 [B, V], a row for each chunk whose `is_last` holds, in order.
        """
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.images and sequence.memory is None:
                sequence.memory = self.model.image_memory(sequence.images, sequence.image_positions)
        context = PagedContext(
            self.cache,
            [chunk.length for chunk in chunks],
            [chunk.start for chunk in chunks],
            [chunk.sequence.block_table for chunk in chunks],
            [chunk.sequence.memory for chunk in chunks],
        )
        hidden_TE = self.hidden([i for chunk in chunks for i in chunk.token_ids], context)
        ends = accumulate(chunk.length for chunk in chunks)
        rows = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.is_last]
        if not rows:
            return hidden_TE.new_empty(0, self.model.config.vocab_size, dtype=torch.float32)
        if len(rows) < len(hidden_TE):
            hidden_TE = hidden_TE[torch.tensor(rows, device=hidden_TE.device)]
        return self.model.logits(hidden_TE)

    def hidden(self, ids: list[int], context: PagedContext) -> Tensor:
        """Final hidden states [T, E] of the tokens of a context."""
        if self.model.training:  # a trainer that rolls out has switched it
            self.model.eval()
        hidden_TE: Tensor = self.model(torch.tensor(ids, device=self.cache.device), context.positions, context)
        return hidden_TE
