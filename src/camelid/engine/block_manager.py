"""Who holds which block of the cache."""

from __future__ import annotations

import heapq


class BlockManager:
    """Hands out the blocks of a paged cache, each to one holder.

    The lowest free block is handed out first, so that a sequence that runs alone lies in one piece, which attention
    reads without a gather.

    Args:
        num_blocks: blocks of the cache.
        block_size: tokens per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_touched = 0
        """Blocks below this one have been handed out before; those from it on never, and are not in `_returned`."""
        self._returned: list[int] = []
        self._num_held = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return self.num_blocks - self._num_held

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def reserve(self, block_table: list[int], num_tokens: int, *, leave_free: int = 0) -> bool:
        """Append free blocks to the table until it holds `num_tokens`; change nothing if they would not suffice.

        Args:
            block_table: a sequence's blocks, in order; extended in place.
            num_tokens: tokens of the sequence, those already held included.
            leave_free: blocks that must be free afterwards.
        """
        num_needed = self.num_blocks_for(num_tokens) - len(block_table)
        if num_needed <= 0:
            return True
        if num_needed + leave_free > self.num_free:
            return False
        block_table.extend(self._take() for _ in range(num_needed))
        return True

    def release(self, block_table: list[int]) -> None:
        """Give up every block of the table, which is empty afterwards."""
        for block in block_table:
            heapq.heappush(self._returned, block)
        self._num_held -= len(block_table)
        block_table.clear()

    def _take(self) -> int:
        self._num_held += 1
        if self._returned:
            return heapq.heappop(self._returned)
        self._num_touched += 1
        return self._num_touched - 1
