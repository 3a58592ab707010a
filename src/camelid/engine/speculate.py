"""Guessing tokens ahead, so that one forward pass can check several: by a small model, or from the text itself.

A guess changes nothing but the time. The token at a place is the best of the scores plus the noise of the request's
seed at that place; it is drawn from the target's scores as without guesses, and a guess that equals it saves a pass. So
replies are those of the same seed without speculation, and their distribution is the target's. A draft model draws with
the same noise, which makes equal tokens likely where the two distributions are near (Gumbel coupling; Daliri et al.
2024, arXiv 2408.07978); a guess without a distribution is right as often as the target gives it, which no
acceptance rule betters (Leviathan et al. 2023, arXiv 2211.17192, §2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from camelid.engine.kv_cache import PagedContext
from camelid.engine.sampling import sample

if TYPE_CHECKING:
    from camelid.engine.kv_cache import PagedKVCache
    from camelid.engine.sequence import Chunk, Sequence
    from camelid.model.base import LanguageModel

LONGEST, SHORTEST = 4, 2
"""Last tokens that are looked up in the text, the longer first. A single token is followed by too many others."""


DEFAULT_DRAFTS = 4
"""Guesses of a draft model, if their number is not given."""


class Proposer(Protocol):
    """Who guesses."""

    def propose(self, chunks: list[Chunk]) -> None:
        """Fill in `drafts` of the chunks, up to their `num_drafts` each."""


class LookUp:
    """Guesses what followed the last tokens when they stood in prompt or reply before (prompt lookup, Saxena 2023)."""

    def propose(self, chunks: list[Chunk]) -> None:
        """Fill in `drafts`, where the last tokens have stood before."""
        for chunk in chunks:
            if chunk.num_drafts:
                chunk.drafts[:] = continuation(chunk.sequence)[: chunk.num_drafts]


def continuation(sequence: Sequence) -> list[int]:
    """What followed the latest earlier place of the longest known ending."""
    ids, ends = sequence.token_ids, sequence.ngram_ends
    # Endings up to the one before the last token: the last ones' own place is no earlier one.
    for end in range(sequence.num_indexed + 1, len(ids)):
        for size in range(SHORTEST, min(LONGEST, end) + 1):
            ends[tuple(ids[end - size : end])] = end
    sequence.num_indexed = len(ids) - 1
    for size in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
        found = ends.get(tuple(ids[-size:]))
        if found is not None:
            return ids[found:]
    return []


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would say.

    Its keys and values lie in a cache of its own under the same block numbers. What a rejected guess left there is
    written over.

    Args:
        model: the smaller model.
        cache: as many blocks of the same size as the target's.
        max_batch_tokens: tokens per forward pass while it reads a prompt.
    """

    def __init__(self, model: LanguageModel, cache: PagedKVCache, max_batch_tokens: int) -> None:
        self._model = model.eval()
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens

    @torch.inference_mode()
    def propose(self, chunks: list[Chunk]) -> None:
        """Fill in `drafts`, one token of each chunk per pass of the draft model."""
        open_chunks = [chunk for chunk in chunks if chunk.num_drafts]
        shadows = {id(chunk): chunk.sequence.shadow() for chunk in open_chunks}
        for chunk in open_chunks:
            self._catch_up(chunk.sequence)
        while open_chunks:
            sequences = [chunk.sequence for chunk in open_chunks]
            rows = [shadows[id(chunk)] for chunk in open_chunks]
            news = [row.token_ids[s.num_draft_computed :] for row, s in zip(rows, sequences, strict=True)]
            context = PagedContext(
                self._cache,
                [len(new) for new in news],
                [sequence.num_draft_computed for sequence in sequences],
                [sequence.block_table for sequence in sequences],
                wanted_lens=[1] * len(news),
            )
            ids = torch.tensor([i for new in news for i in new], device=self._cache.device)
            tokens = sample(self._model.logits(self._model(ids, context.positions, context)), rows)
            still_open = []
            for chunk, row, token in zip(open_chunks, rows, tokens, strict=True):
                # What is computed of guesses counts only once they are accepted.
                chunk.sequence.num_draft_computed = len(row)
                if token is not None and token >= 0:
                    chunk.drafts.append(token)
                    row.token_ids.append(token)
                    if len(chunk.drafts) < chunk.num_drafts:
                        still_open.append(chunk)
            open_chunks = still_open

    def _catch_up(self, sequence: Sequence) -> None:
        """Read all but the last token, in pieces."""
        # Guesses that were rejected lie behind the sequence's own tokens.
        sequence.num_draft_computed = min(sequence.num_draft_computed, len(sequence) - 1)
        while (missing := len(sequence) - 1 - sequence.num_draft_computed) > 0:
            length = min(missing, self._max_batch_tokens)
            start = sequence.num_draft_computed
            context = PagedContext(self._cache, [length], [start], [sequence.block_table], wanted_lens=[0])
            ids = torch.tensor(sequence.token_ids[start : start + length], device=self._cache.device)
            self._model(ids, context.positions, context)
            sequence.num_draft_computed += length
