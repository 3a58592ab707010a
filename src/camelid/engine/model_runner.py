"""One step on the device: chunks of sequences in, scores of the tokens to come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.engine.invariant import InvariantContext, num_padded
from camelid.engine.kv_cache import PagedContext, integers
from camelid.engine.sampling.logprobs import token_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.engine.decode_step import DecodeStep
    from camelid.engine.kv_cache import PagedKVCache
    from camelid.engine.sequence import Chunk
    from camelid.model.base import LanguageModel
    from camelid.model.lora import Adapters


SCORED_TOGETHER = 64
"""Rows of the vocabulary's scores that are held at once for `prompt_logprobs`: 33 MB each time of 128,000 tokens."""


class ModelRunner:
    """Runs chunks of any sequences in one forward pass over the paged cache."""

    def __init__(
        self, model: LanguageModel, cache: PagedKVCache, adapters: Adapters, *, in_tiles: bool = False
    ) -> None:
        self.model = model
        self.cache = cache
        self.adapters = adapters
        self.in_tiles = in_tiles
        """Whether torch works in tiles of one shape, so that a token's result hangs on its own sequence alone."""
        self.decode_step: DecodeStep | None = None
        """What runs the steps that it takes; None: all steps run as any mix of chunks does."""

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute the chunks' tokens, keep their keys and values, and score what follows the chunks that are last.

        Returns:
            Logits fp32 [B, V]: for each chunk whose `is_last` holds a row, and a row behind each of its guesses. The
            next run may write over them.
        """
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.images and sequence.memory is None:
                sequence.memory = self.model.image_memory(sequence.images, sequence.image_positions)
        if self.decode_step is not None and self.decode_step.takes(chunks):
            return self.decode_step.run(chunks)
        ids: list[int] = []
        lengths, starts, block_tables, memories, adapters, wanted_lens = [], [], [], [], [], []
        to_be_scored: list[tuple[Chunk, int]] = []
        rows: list[int] = []
        num_wanted = 0
        for chunk in chunks:
            sequence, num_drafts = chunk.sequence, len(chunk.drafts)
            length = chunk.length + num_drafts
            ids += chunk.token_ids
            lengths.append(length)
            starts.append(chunk.start)
            block_tables.append(sequence.block_table)
            memories.append(sequence.memory)
            adapters.append((sequence.params.adapter, length))
            if sequence.params.prompt_logprobs is not None:
                to_be_scored.append((chunk, num_wanted))
            wanted_lens.append(_num_wanted(chunk))
            num_wanted += wanted_lens[-1]
            if chunk.is_last:
                rows += range(num_wanted - 1 - num_drafts, num_wanted)
        kind = InvariantContext if self.in_tiles else PagedContext
        context = kind(self.cache, lengths, starts, block_tables, memories, wanted_lens)
        with self.adapters.applied(adapters):
            hidden_WE = self.hidden(ids, context)
        for chunk, first in to_be_scored:
            self._score_prompt(chunk, hidden_WE[first : first + chunk.length])
        if not rows:
            return hidden_WE.new_empty(0, self.model.config.vocab_size, dtype=torch.float32)
        num_rows = len(rows)
        if self.in_tiles:
            rows += [0] * (num_padded(num_rows) - num_rows)
        if rows != list(range(hidden_WE.shape[0])):
            hidden_WE = hidden_WE[torch.tensor(rows, device=hidden_WE.device)]
        return self.model.logits(hidden_WE)[:num_rows]

    def _score_prompt(self, chunk: Chunk, hidden_TE: Tensor) -> None:
        """Note how likely the prompt's tokens were that follow the chunk's; a chunk that runs again notes it again."""
        sequence = chunk.sequence
        following = sequence.token_ids[chunk.start + 1 : min(chunk.start + chunk.length + 1, sequence.num_prompt)]
        if not following:
            return
        del sequence.prompt_logprobs[chunk.start :]
        num_top = sequence.params.prompt_logprobs or 0
        for first in range(0, len(following), SCORED_TOGETHER):
            ids = following[first : first + SCORED_TOGETHER]
            logits_TV = self.model.logits(hidden_TE[first : first + len(ids)])
            sequence.prompt_logprobs += token_logprobs(logits_TV, ids, num_top)

    def hidden(self, ids: list[int], context: PagedContext) -> Tensor:
        """Final hidden states [W, E] of those tokens of a context that it wants."""
        if self.model.training:  # a trainer that rolls out has switched it
            self.model.eval()
        positions, wanted = context.positions, context.wanted_rows
        ids = ids + [0] * (positions.shape[0] - len(ids))
        hidden_WE: Tensor = self.model(integers(ids, self.cache.device), positions, context)
        num_wanted = (positions if wanted is None else wanted).shape[0]
        assert hidden_WE.shape[0] == num_wanted, "the model returns other rows than its context wants"
        return hidden_WE


def _num_wanted(chunk: Chunk) -> int:
    """How many of a chunk's tokens, the last ones, somebody reads the hidden states of."""
    if chunk.sequence.params.prompt_logprobs is not None:
        return chunk.length + len(chunk.drafts)
    return 1 + len(chunk.drafts) if chunk.is_last else 0
