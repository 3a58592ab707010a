"""Which tokens run next. The scheduler counts tokens and knows no phases: a sequence has one pending token, or many."""

from __future__ import annotations

from bisect import bisect, insort
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING

from camelid.engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from camelid.engine.block_manager import BlockManager

PRIORITY_TURNS = 64
"""Turns that a request gains by one step of priority. Bounded, so that the most urgent traffic delays the least urgent
request by that many requests for each step between them, and not for ever."""

_rank = attrgetter("rank")


class Scheduler:
    """Shares out a budget of tokens per step and of cache blocks, in an order that is fixed on arrival.

    A sequence's rank is its turn less its priority's head start; equal ones go by arrival. Requests of one owner have
    consecutive turns; an owner who comes anew starts at the turn that is being served, so that nobody waits behind all
    of another owner's queue (start-time fair queueing, Goyal et al. 1996, with requests of equal cost). With one owner
    and one priority this is first come, first served.

    Of those unfinished, the one with the least rank advances in every step: when blocks or places run out, the greatest
    rank gives up its own and waits, to be computed again later as far as the cache has not kept it. Since each sequence
    fits into the cache alone, and only finitely many can overtake, every one finishes.

    A sequence waits while another ahead of it is computing a prefix that both begin with, and then shares it.

    Args:
        blocks: the cache's blocks.
        max_batch_tokens: tokens per step, of all sequences together.
        max_sequences: sequences that hold cache blocks at one time.
        max_images: images of these sequences together; each sequence has fewer or as many.
        num_drafts: guesses that a decoding sequence may have checked in a step, where tokens and blocks are to spare.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_tokens: int,
        max_sequences: int,
        max_images: int = 0,
        num_drafts: int = 0,
    ) -> None:
        self.blocks = blocks
        self.num_drafts = num_drafts
        self.max_images = max_images
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.waiting: list[Sequence] = []
        """By rank, as is `running`."""
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._num_arrivals = 0
        self._turn = 0
        """The latest turn that has begun to run."""
        self._last_turns: dict[str, int] = {}
        """Of each owner with unfinished sequences."""
        self._num_unfinished: dict[str, int] = {}
        self._computing: dict[bytes, Sequence] = {}
        """Keys of blocks that are not yet computed, and who will."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which must fit into the cache alone at its full length."""
        assert len(sequence.images) <= self.max_images
        assert self.blocks.num_blocks_for(sequence.max_length) <= self.blocks.num_blocks
        owner = sequence.owner
        turn = max(self._turn, self._last_turns.get(owner, self._turn - 1) + 1)
        self._last_turns[owner] = turn
        self._num_unfinished[owner] = self._num_unfinished.get(owner, 0) + 1
        sequence.turn = turn
        sequence.rank = (turn - PRIORITY_TURNS * sequence.priority, self._num_arrivals)
        self._num_arrivals += 1
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not; the cache remembers its full blocks."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_up(sequence)
        self._num_unfinished[sequence.owner] -= 1
        if not self._num_unfinished[sequence.owner]:
            del self._num_unfinished[sequence.owner], self._last_turns[sequence.owner]

    def schedule(self) -> list[Chunk]:
        """The tokens of the next step, at most one chunk per sequence; their blocks are reserved.

        Empty only when no sequence is left.
        """
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        is_full = False
        preemptions_before = self.num_preemptions
        candidates: Iterable[Sequence] = self.running.copy()
        if self.waiting:
            candidates = merge(candidates, self.waiting.copy(), key=_rank)
        for sequence in candidates:
            if budget == 0 or (is_full and len(chunks) >= len(self.running)):
                break
            if not sequence.block_table:
                # What was preempted in this step would only take back what it gave.
                if is_full or self.num_preemptions > preemptions_before or self._awaits_prefix(sequence):
                    continue
                if not self._start(sequence):
                    is_full = True
                    continue
            num_pending = sequence.num_pending
            length = min(num_pending, budget)
            if not self._make_room(sequence, sequence.num_computed + length):
                continue
            num_drafts = self._num_drafts(sequence, budget - length) if self.num_drafts else 0
            chunks.append(Chunk(sequence, sequence.num_computed, length, length == num_pending, num_drafts))
            budget -= length + num_drafts
        return chunks

    def note_computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Take a sequence's next tokens for run: its blocks that are full now can be shared."""
        sequence.num_computed += num_tokens
        num_full = sequence.num_computed // self.blocks.block_size
        if num_full > sequence.num_remembered:
            keys = sequence.keys(num_full, self.blocks.block_size)
            for index in range(sequence.num_remembered, num_full):
                self.blocks.remember(sequence.block_table[index], keys[index])
                if self._computing.get(keys[index]) is sequence:
                    del self._computing[keys[index]]
            sequence.num_remembered = num_full

    def rebuild(self, sequences: Iterable[Sequence]) -> None:
        """Write the books anew for these unfinished sequences, all of which wait then; whatever the books said."""
        self.blocks.reset()
        self.running.clear()
        self._computing.clear()
        self._num_unfinished.clear()
        self._last_turns.clear()
        self.waiting = sorted(sequences, key=_rank)
        for sequence in self.waiting:
            owner = sequence.owner
            self._num_unfinished[owner] = self._num_unfinished.get(owner, 0) + 1
            self._last_turns[owner] = max(self._last_turns.get(owner, 0), sequence.turn)
            sequence.block_table.clear()
            sequence.num_computed = sequence.num_remembered = sequence.num_draft_computed = 0
            sequence.memory = None

    def preempt_all(self) -> None:
        """Have every running sequence computed again from its first token."""
        while self.running:
            self._preempt_latest()

    def _num_drafts(self, sequence: Sequence, budget: int) -> int:
        """Guesses to be checked behind a decoding sequence's token, if their blocks are free."""
        if sequence.num_pending > 1:
            return 0
        num_drafts = min(self.num_drafts, budget, sequence.max_length - len(sequence) - 1)
        if num_drafts <= 0 or not self.blocks.reserve(sequence.block_table, len(sequence) + num_drafts):
            return 0
        return num_drafts

    def _start(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, from what the cache remembers of it; False if there is no room."""
        # Places and blocks are taken only from sequences of greater rank.
        while not (self._has_place(sequence) and self._reserve(sequence)):
            assert self.running, "a sequence that runs alone fits into the cache"
            if self.running[-1].rank < sequence.rank:
                return False
            self._preempt_latest()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        self._turn = max(self._turn, sequence.turn)
        for key in sequence.keys(len(sequence) // self.blocks.block_size, self.blocks.block_size):
            if not self.blocks.remembers(key):
                others = self._computing.get(key)
                if others is None or sequence.rank < others.rank:
                    self._computing[key] = sequence
        return True

    def _has_place(self, sequence: Sequence) -> bool:
        """Whether one more sequence, and its images, may run."""
        if sequence.images and sum(len(s.images) for s in (*self.running, sequence)) > self.max_images:
            return False
        return len(self.running) < self.max_sequences

    def _reserve(self, sequence: Sequence) -> bool:
        """Blocks for all the tokens of a sequence that has none, shared as far as they can be."""
        self.blocks.share(sequence.block_table, self._keys_to_share(sequence))
        num_shared = len(sequence.block_table)
        # One block left to each sequence ahead, or the newcomer would soon be preempted again by their growth.
        num_ahead = bisect(self.running, sequence.rank, key=_rank)
        if not self.blocks.reserve(sequence.block_table, len(sequence), leave_free=num_ahead):
            self.blocks.release(sequence.block_table)
            return False
        sequence.num_remembered = num_shared
        sequence.num_computed = sequence.num_reused = num_shared * self.blocks.block_size
        return True

    def _keys_to_share(self, sequence: Sequence) -> list[bytes]:
        """The last token is left out: it has to run, so that the next one can be sampled."""
        size = self.blocks.block_size
        return sequence.keys((len(sequence) - 1) // size, size) if sequence.may_reuse else []

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether a sequence ahead is computing the first block that this one would have to compute."""
        for key in self._keys_to_share(sequence):
            if not self.blocks.remembers(key):
                others = self._computing.get(key)
                return others is not None and others.rank < sequence.rank
        return False

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve blocks, preempting the greatest ranks as needed; False if that was the sequence itself."""
        while not self.blocks.reserve(sequence.block_table, num_tokens):
            assert len(self.running) > 1, "a sequence that runs alone fits into the cache"
            if self._preempt_latest() is sequence:
                return False
        return True

    def _preempt_latest(self) -> Sequence:
        sequence = self.running.pop()
        self._give_up(sequence)
        insort(self.waiting, sequence, key=_rank)
        self.num_preemptions += 1
        return sequence

    def _give_up(self, sequence: Sequence) -> None:
        for key in sequence.known_keys[sequence.num_remembered :]:
            if self._computing.get(key) is sequence:
                del self._computing[key]
        self.blocks.release(sequence.block_table)
        sequence.num_computed = sequence.num_remembered = sequence.num_draft_computed = 0
        sequence.memory = None
