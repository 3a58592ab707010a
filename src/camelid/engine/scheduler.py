"""Which tokens run next. The scheduler counts tokens and knows no phases: a sequence has one pending token, or many."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from camelid.engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from camelid.engine.block_manager import BlockManager


class Scheduler:
    """First come, first served, under a budget of tokens per step and of cache blocks.

    Sequences run in order of arrival, and everything that runs has arrived before everything that waits. When blocks
    run out, the latest arrival gives up its own and waits, to be computed again later. The earliest sequence therefore
    always advances, and since each fits into the cache alone, every one finishes.

    Args:
        blocks: the cache's blocks.
        max_batch_tokens: tokens per step, of all sequences together.
        max_sequences: sequences that hold cache blocks at one time.
        max_images: images of these sequences together; each sequence has fewer or as many.
    """

    def __init__(self, blocks: BlockManager, *, max_batch_tokens: int, max_sequences: int, max_images: int = 0) -> None:
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.max_images = max_images
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which must fit into the cache alone at its full length."""
        assert len(sequence.images) <= self.max_images
        assert self.blocks.num_blocks_for(sequence.max_length) <= self.blocks.num_blocks
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its blocks."""
        self.blocks.release(sequence.block_table)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The tokens of the next step, at most one chunk per sequence; their blocks are reserved.

        Empty only when no sequence is left.
        """
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        while len(chunks) < len(self.running) and budget > 0:
            sequence = self.running[len(chunks)]
            length = min(sequence.num_pending, budget)
            if self._make_room(sequence, sequence.num_computed + length):
                chunks.append(Chunk(sequence, sequence.num_computed, length))
                budget -= length
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            if sequence.images and sum(len(s.images) for s in (*self.running, sequence)) > self.max_images:
                break
            # One block left to each running sequence, or the newcomer would soon be preempted again by their growth.
            if not self.blocks.reserve(sequence.block_table, len(sequence), leave_free=len(self.running)):
                break
            self.running.append(self.waiting.popleft())
            length = min(sequence.num_pending, budget)
            chunks.append(Chunk(sequence, sequence.num_computed, length))
            budget -= length
        return chunks

    def preempt_all(self) -> None:
        """Have every running sequence computed again from its first token."""
        while self.running:
            self._preempt_latest()

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve blocks, preempting the latest arrivals as needed; False if that was the sequence itself."""
        while not self.blocks.reserve(sequence.block_table, num_tokens):
            assert len(self.running) > 1, "a sequence that runs alone fits into the cache"
            if self._preempt_latest() is sequence:
                return False
        return True

    def _preempt_latest(self) -> Sequence:
        sequence = self.running.pop()
        self.blocks.release(sequence.block_table)
        sequence.num_computed = 0
        sequence.memory = None
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
        return sequence
