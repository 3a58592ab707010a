"""Who holds which block of the cache, and which blocks are worth keeping when nobody does.

A full block is known by a key that stands for its own tokens and all before them, under a root that says whose prefix
it is. Sequences that start alike share the blocks of their beginning, and what a finished or preempted sequence leaves
stays until its room is needed: least recently used first.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEY_BYTES = 16
"""Of a block's key. It is all that tells two prefixes apart, so that a digest which can't be forged makes it."""


def root_key(*parts: str | bytes | int) -> bytes:
    """The key before a sequence's first block: sequences share blocks only if all the parts are equal.

    Args:
        parts: what the keys and values depend on beside the token ids, and who may share them: a salt, an adapter.
    """
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def next_key(key_before: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block, from the key of the block before it and its own tokens."""
    return blake2b(array("q", token_ids).tobytes(), digest_size=KEY_BYTES, key=key_before).digest()


class BlockManager:
    """Hands out the blocks of a paged cache, counts their holders and remembers what full blocks hold.

    The lowest free block is handed out first, so that a sequence that runs alone lies in one piece, which attention
    reads without a gather. Remembered blocks are given up only when no others are left.

    Args:
        num_blocks: blocks of the cache.
        block_size: tokens per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_touched = 0
        """Blocks below this one have been handed out before; those from it on never, and are in no other list."""
        self._returned: list[int] = []
        """A heap of blocks without holder and key."""
        self._num_holders: dict[int, int] = {}
        """Of each block that is held."""
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        """The inverse of `_keys`."""
        self._unheld: OrderedDict[int, None] = OrderedDict()
        """Blocks with a key and no holder, the least recently used first."""

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, remembered ones included."""
        return self.num_blocks - len(self._num_holders)

    @property
    def num_remembered(self) -> int:
        """Blocks with a key, held or not."""
        return len(self._keys)

    @property
    def num_remembered_unheld(self) -> int:
        """Of these, blocks that nobody holds."""
        return len(self._unheld)

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
        taken = [self._take() for _ in range(num_needed)]
        block_table.extend(sorted(taken) if num_needed > 1 else taken)
        return True

    def share(self, block_table: list[int], keys: Iterable[bytes]) -> None:
        """Append the blocks that are remembered under these keys to a table, up to the first that is not."""
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                return
            if block not in self._num_holders:
                del self._unheld[block]
            self._num_holders[block] = self._num_holders.get(block, 0) + 1
            block_table.append(block)

    def remembers(self, key: bytes) -> bool:
        """Whether a block is known under this key."""
        return key in self._blocks

    def remember(self, block: int, key: bytes) -> None:
        """Note what a block holds, now that all of it is computed; it must not be written to any more.

        Where another block is known under the key already, that one stays.
        """
        if key not in self._blocks and block not in self._keys:
            self._keys[block] = key
            self._blocks[key] = block

    def forget(self, block_table: Iterable[int]) -> None:
        """Let these blocks be found no more; their holders keep them."""
        for block in block_table:
            if key := self._keys.pop(block, None):
                del self._blocks[key]

    def release(self, block_table: list[int]) -> None:
        """Give up every block of the table, which is empty afterwards."""
        # The last block first: a prefix outlives what follows it, which is of no use without it.
        for block in reversed(block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                del self._num_holders[block]
                if block in self._keys:
                    self._unheld[block] = None
                else:
                    heapq.heappush(self._returned, block)
        block_table.clear()

    def forget_all(self) -> None:
        """Let no block be found any more: what they hold is no longer what would be computed."""
        for block in self._unheld:
            heapq.heappush(self._returned, block)
        self._unheld.clear()
        self._keys.clear()
        self._blocks.clear()

    def reset(self) -> None:
        """Begin anew: nobody holds a block, and none is remembered."""
        self._num_touched = 0
        for book in (self._returned, self._num_holders, self._keys, self._blocks, self._unheld):
            book.clear()

    def remembered(self) -> list[tuple[bytes, int]]:
        """Every key and its block; a block that nobody has used for long comes early."""
        held = [(key, block) for block, key in self._keys.items() if block in self._num_holders]
        return [*((self._keys[block], block) for block in self._unheld), *held]

    def _take(self) -> int:
        if self._returned:
            block = heapq.heappop(self._returned)
        elif self._num_touched < self.num_blocks:
            block = self._num_touched
            self._num_touched += 1
        else:
            block, _ = self._unheld.popitem(last=False)
            del self._blocks[self._keys.pop(block)]
        self._num_holders[block] = 1
        return block
