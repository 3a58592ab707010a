"""Batches for fine-tuning: whole conversations packed into rows, the loss taken where the assistant speaks."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from camelid.base.errors import ChatFormatError, FormatError, RecipeError
from camelid.data.order import permuted, rows_of_samples, samples_of_batch
from camelid.data.rows import Row, join_rows
from camelid.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from camelid.data.batch import Batch
    from camelid.data.conversations import Conversation
    from camelid.tokenizer.chat_format import ChatFormat

WINDOW: Final = 8192
"""Conversations that are packed together: enough to fill rows well, and few enough to mix short rows with long ones."""

TooLong = Literal["truncate", "drop"]


@dataclass(frozen=True)
class PackingReport:
    """What became of the conversations."""

    num_conversations: int
    """Conversations that were read."""
    num_truncated: int
    """Longer than a row, so that their end was cut off."""
    num_dropped: int
    """Longer than a row, and left out."""
    num_without_target: int
    """Left out, because the assistant says nothing in them (or in what truncation left of them)."""
    num_tokens: int
    """Tokens of the conversations that were kept."""
    num_targets: int
    """Tokens that the loss is taken at."""
    num_rows: int
    row_length: int

    @property
    def fill(self) -> float:
        """The share of the rows that is no padding."""
        return self.num_tokens / (self.num_rows * self.row_length)

    def __str__(self) -> str:
        lost = [
            (self.num_truncated, f"longer than {self.row_length} tokens and truncated"),
            (self.num_dropped, f"longer than {self.row_length} tokens and dropped"),
            (self.num_without_target, "without a word of the assistant and dropped"),
        ]
        return ", ".join(
            [
                f"{self.num_conversations} conversations",
                *(f"{count} {what}" for count, what in lost if count),
                f"{self.num_tokens} tokens, {self.num_targets} of them learned",
                f"{self.num_rows} rows filled to {100 * self.fill:.1f}%",
            ]
        )


class ConversationBatches:
    """A `BatchSource` over conversations.

        batches = ConversationBatches(read_conversations([path]), chat, sequence_length=2048, batch_size=8, seed=0)
        print(batches.report)

    Conversations are rendered at the start and held in memory, at five bytes per token. They are packed whole into rows
    of `sequence_length` tokens, each conversation a sequence of its own: within windows of `WINDOW` conversations in
    shuffled order, from the longest to the shortest, each into the row that it fills best. A sample is a row; every
    epoch shows every row once, in a new order. What is left of a row is padding, a sequence of weight 0.

    Args:
        conversations: what to learn from.
        chat: renders them; its mask says where the loss is taken.
        sequence_length: tokens of a row. A conversation of n tokens takes n - 1: its last one is only a target.
        batch_size: rows of a batch, of all ranks together.
        seed: of the packing and of the order of rows.
        too_long: what to do with a conversation that no row can hold: cut its end off, or drop it.

    Raises:
        RecipeError: a length or size below 1.
        ChatFormatError: the format cannot express a conversation; `where` is its file and line.
        FormatError: nothing is left to learn from.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        chat: ChatFormat,
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        too_long: TooLong = "drop",
    ) -> None:
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if value < 1:
                raise RecipeError(f"{value} is not 1 or more", where=name)
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self._vocabulary = Vocabulary.of(chat.tokenizer)
        rendered = _Rendered(conversations, chat, sequence_length, too_long)
        self._ids, self._mask, self._offsets = rendered.joined()
        self._rows = _packed(np.diff(self._offsets) - 1, sequence_length, seed)
        num_kept = len(self._offsets) - 1
        self.report = PackingReport(
            num_conversations=rendered.num_read,
            num_truncated=rendered.num_truncated,
            num_dropped=rendered.num_dropped,
            num_without_target=rendered.num_without_target,
            num_tokens=len(self._ids) - num_kept,
            num_targets=int(self._mask.sum()),
            num_rows=len(self._rows),
            row_length=sequence_length,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the rendered conversations and the settings."""
        digest = hashlib.sha256(
            repr((self._vocabulary.fingerprint, self.sequence_length, self.batch_size, self.seed)).encode()
        )
        for array in (self._ids, self._mask, self._offsets):
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    def epochs(self, num_batches: int) -> dict[str, float]:
        """How often the conversations have been gone through after so many batches."""
        return {"conversations": num_batches * self.batch_size / self.num_rows}

    def batch(self, number: int, rank: int = 0, world: int = 1) -> Batch:
        """Batch `number`, or one rank's part of it; the parts of ranks 0, 1, … end to end are the whole batch.

        Raises:
            RecipeError: the batch does not divide among the ranks.
        """
        samples_N = samples_of_batch(number, self.batch_size, rank, world)
        rows = rows_of_samples(samples_N, len(self._rows), self.seed).tolist()
        return self._join(rows, int(samples_N[0]))

    def in_order(self) -> Iterator[Batch]:
        """Every row once: what held-out conversations are measured on. The last batch is shorter."""
        for first in range(0, len(self._rows), self.batch_size):
            yield self._join(range(first, min(first + self.batch_size, len(self._rows))), first)

    def _join(self, rows: Sequence[int], first_sample: int) -> Batch:
        made = [self._row(number) for number in rows]
        return join_rows(made, self.sequence_length, self._vocabulary.padding_id, first_sample)

    def _row(self, number: int) -> Row:
        spans = [(self._offsets[index], self._offsets[index + 1]) for index in self._rows[number]]
        ids_N = np.concatenate([self._ids[start : stop - 1] for start, stop in spans], dtype=np.int64)
        targets_N = np.concatenate([self._ids[start + 1 : stop] for start, stop in spans], dtype=np.int64)
        mask_N = np.concatenate([self._mask[start + 1 : stop] for start, stop in spans])
        return Row(
            ids_N=ids_N,
            targets_N=targets_N,
            weights_N=mask_N.astype(np.float32),
            lengths=tuple(int(stop - start) - 1 for start, stop in spans),
            num_target_bytes=int(self._vocabulary.num_bytes_V[targets_N[mask_N]].sum()),
        )


class _Rendered:
    """Conversations as ids and masks, those that can be learned from, and counts of the others."""

    def __init__(
        self, conversations: Iterable[Conversation], chat: ChatFormat, sequence_length: int, too_long: TooLong
    ) -> None:
        self.num_read = self.num_truncated = self.num_dropped = self.num_without_target = 0
        self._ids: list[NDArray[np.uint32]] = []
        self._masks: list[NDArray[np.bool_]] = []
        longest = sequence_length + 1
        for conversation in conversations:
            self.num_read += 1
            ids, mask = _render(conversation, chat)
            if len(ids) > longest and too_long == "drop":
                self.num_dropped += 1
                continue
            self.num_truncated += len(ids) > longest
            mask_N = np.array(mask[:longest], dtype=np.bool_)
            mask_N[:1] = False
            if not mask_N.any():
                self.num_without_target += 1
                continue
            self._ids.append(np.array(ids[:longest], dtype=np.uint32))
            self._masks.append(mask_N)

    def joined(self) -> tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.int64]]:
        """Ids and masks end to end, and where each conversation starts and the last one ends.

        Raises:
            FormatError: there are none.
        """
        if not self._ids:
            what = f"of {self.num_read} conversations none is left to learn from"
            if self.num_dropped:
                what += f": {self.num_dropped} are longer than a row"
            raise FormatError(what, hint="raise sequence_length" if self.num_dropped else None)
        offsets = np.fromiter(accumulate(map(len, self._ids), initial=0), dtype=np.int64)
        return np.concatenate(self._ids), np.concatenate(self._masks), offsets


def _render(conversation: Conversation, chat: ChatFormat) -> tuple[list[int], list[bool]]:
    try:
        rendered = chat.render(conversation.messages, tools=conversation.tools or None)
        if rendered.images:
            raise ChatFormatError("the conversation shows images, which are not trained on yet")
        return rendered.ids, rendered.mask
    except ChatFormatError as error:
        where = f"{conversation.where}, {error.where}" if error.where else conversation.where
        raise ChatFormatError(error.what, where=where, hint=error.hint) from error


def _packed(lengths_C: NDArray[np.int64], row_length: int, seed: int) -> list[list[int]]:
    """Which conversations each row holds."""
    order_C = permuted(np.arange(len(lengths_C)), len(lengths_C), f"{seed}/packing")
    rows: list[list[int]] = []
    for first in range(0, len(order_C), WINDOW):
        window_C = order_C[first : first + WINDOW]
        longest_first_C = window_C[np.argsort(-lengths_C[window_C], kind="stable")]
        rows += _best_fit(longest_first_C.tolist(), lengths_C, row_length)
    return rows


def _best_fit(conversations: list[int], lengths_C: NDArray[np.int64], row_length: int) -> list[list[int]]:
    """Each conversation in turn goes into the row with the least room that still holds it, or else a new one."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room and number of every row that is not full, ascending
    for conversation in conversations:
        length = int(lengths_C[conversation])
        place = bisect_left(free, (length, -1))
        if place < len(free):
            room, row = free.pop(place)
            rows[row].append(conversation)
        else:
            room, row = row_length, len(rows)
            rows.append([conversation])
        if room > length:
            insort(free, (room - length, row))
    return rows
