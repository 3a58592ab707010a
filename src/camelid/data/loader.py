"""Batches for pretraining: rows cut from token shards, in an order that depends on the seed and the number alone."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from camelid.base.errors import RecipeError
from camelid.data.mixture import Mixture, MixturePart
from camelid.data.order import rows_of_samples, samples_of_batch
from camelid.data.rows import Row, join_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.data.batch import Batch
    from camelid.data.shards import TokenShards


class PretrainBatches:
    """A `BatchSource` over a tokenized corpus, or a mixture of several.

        batches = PretrainBatches(TokenShards(folder, tokenizer), sequence_length=1024, batch_size=32, seed=0)
        batches.batch(12_345)

    The documents end to end are cut into rows of `sequence_length` tokens; a sample is a row. A row holds the end of
    one document, whole ones, the start of another: each is a sequence of its own, with its own positions, and no target
    crosses from one to the next. What a long document says in one row is not seen from the next row.

    Every token is an input once per epoch, and every token but documents' first ones is a target that counts once. The
    last row is filled up with padding, a sequence of weight 0.

    Sample `n` is batch `n // batch_size`'s, whatever the number of ranks; another batch size cuts the same samples into
    other batches.

    Args:
        data: the corpus; a mixture takes its parts in turn, each in its own epochs.
        sequence_length: tokens of a row.
        batch_size: rows of a batch, of all ranks together.
        seed: of the order of rows.

    Raises:
        RecipeError: a length or size below 1.
    """

    def __init__(self, data: TokenShards | Mixture, *, sequence_length: int, batch_size: int, seed: int) -> None:
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if value < 1:
                raise RecipeError(f"{value} is not 1 or more", where=name)
        self.mixture = data if isinstance(data, Mixture) else Mixture([MixturePart("corpus", data, 1.0)])
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self._parts = [_Rows(part.shards, sequence_length) for part in self.mixture.parts]
        self._padding_id = self.mixture.parts[0].shards.vocabulary.padding_id

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens, the mixture and the settings."""
        settings = (self.mixture.fingerprint, self.sequence_length, self.batch_size, self.seed)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    @property
    def part_rows(self) -> dict[str, int]:
        """Rows of each part, which are its epoch; a corpus that is no mixture is named "corpus"."""
        return {part.name: rows.num_rows for part, rows in zip(self.mixture.parts, self._parts, strict=True)}

    def epochs(self, num_batches: int) -> dict[str, float]:
        """How often each part has been gone through after so many batches."""
        num_samples = num_batches * self.batch_size
        return {name: num_samples * self.mixture.shares[name] / rows for name, rows in self.part_rows.items()}

    def batch(self, number: int, rank: int = 0, world: int = 1) -> Batch:
        """Batch `number`, or one rank's part of it; the parts of ranks 0, 1, … end to end are the whole batch.

        Raises:
            RecipeError: the batch does not divide among the ranks.
        """
        samples_N = samples_of_batch(number, self.batch_size, rank, world)
        part_N, sample_N = self.mixture.choose(samples_N)
        row_N = np.empty_like(sample_N)
        for index in np.unique(part_N):
            chosen_N, name = part_N == index, self.mixture.parts[index].name
            row_N[chosen_N] = rows_of_samples(sample_N[chosen_N], self._parts[index].num_rows, self.seed, name)
        rows = [self._parts[part].row(row) for part, row in zip(part_N.tolist(), row_N.tolist(), strict=True)]
        return join_rows(rows, self.sequence_length, self._padding_id, int(samples_N[0]))

    def in_order(self) -> Iterator[Batch]:
        """Every row of every part once, as stored: what a held-out text is measured on. The last batch is shorter."""
        places = [(part, row) for part in self._parts for row in range(part.num_rows)]
        for first in range(0, len(places), self.batch_size):
            rows = [part.row(row) for part, row in places[first : first + self.batch_size]]
            yield join_rows(rows, self.sequence_length, self._padding_id, first)


class _Rows:
    """A corpus as rows of a fixed length."""

    def __init__(self, shards: TokenShards, length: int) -> None:
        self._shards = shards
        self._length = length
        self.num_rows = -(-shards.num_tokens // length)

    def row(self, number: int) -> Row:
        """Tokens `number * length` and on, with the token after them as the last one's target."""
        shards, vocabulary = self._shards, self._shards.vocabulary
        start = number * self._length
        stop = min(start + self._length, shards.num_tokens)
        stream = shards.tokens(start, min(stop + 1, shards.num_tokens))
        if stop == shards.num_tokens:
            stream = np.append(stream, vocabulary.padding_id)
        ids_N, targets_N = stream[:-1], stream[1:]
        starts = shards.document_starts(start, min(stop + 1, shards.num_tokens)) - start
        weights_N = np.ones(len(ids_N), dtype=np.float32)
        weights_N[starts[starts > 0] - 1] = 0
        if stop == shards.num_tokens:
            weights_N[-1] = 0
        firsts = starts[starts < len(ids_N)]
        num_bytes_N = vocabulary.num_bytes_V[targets_N]
        if shards.manifest.bos is not None:
            num_bytes_N[firsts] = vocabulary.num_first_bytes_V[targets_N[firsts]]
        edges = [0, *firsts[firsts > 0].tolist(), len(ids_N)]
        return Row(
            ids_N=ids_N,
            targets_N=targets_N,
            weights_N=weights_N,
            lengths=tuple(after - before for before, after in pairwise(edges)),
            num_target_bytes=int(num_bytes_N[weights_N > 0].sum()),
        )
