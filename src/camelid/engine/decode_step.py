"""A decoding step of one shape: one new token of each sequence, and nothing in it that Python decides anew.

What differs from step to step lies in one tensor of integers, so a step that was recorded on a CUDA device can be
replayed, and a compiled one is compiled once per shape. Sequences are padded to one of a few numbers, block tables to
one of a few lengths. Rows of padding decode token 0 at position 0 of a block that belongs to nobody.

Shape suffixes: B sequences with padding, N blocks of a table, L = N · block size, V vocabulary, H query heads, K
key/value heads, G = H / K, D head dimension.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from camelid.base.errors import EngineError
from camelid.codecs import DEVICE_FORMATS, codec_of
from camelid.engine.decode_graphs import CudaDevice, Recorder
from camelid.kernels.paged_cuda import paged_attention_on
from camelid.model.attention import AttentionContext
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from camelid.engine.kv_cache import PagedKVCache, Rows
    from camelid.engine.sequence import Chunk
    from camelid.kernels.paged_cuda import PagedAttention
    from camelid.model.attention import Reach
    from camelid.model.base import LanguageModel

SHORTEST = 256
"""Tokens for which the shortest block tables have room."""

ID, POSITION, TABLE = 0, 1, 2
"""Columns of a step's integers: the token, its position, and from the third on the sequence's blocks."""


class DecodeStep:
    """Runs steps in which every sequence decodes one token.

    Args:
        model: any language model.
        cache: its last block is taken for the rows of padding.
        max_sequences: sequences of a step, at most.
        max_context: tokens of a sequence, at most.
        recorder: what records and replays the operations of a step; None: they run one by one.
        compiled: let torch.compile fuse them, which takes from seconds to minutes: once for one sequence, and once for
            any other number.
    """

    def __init__(
        self,
        model: LanguageModel,
        cache: PagedKVCache,
        *,
        max_sequences: int,
        max_context: int,
        recorder: Recorder | None = None,
        compiled: bool = False,
    ) -> None:
        self._model = model
        self._cache = cache
        self._sizes = buckets(1, max_sequences)
        self._table_sizes = buckets(-(-SHORTEST // cache.block_size), -(-max_context // cache.block_size))
        self._recorder = recorder
        head_dim = model.config.head_dim
        self._attention = paged_attention_on(cache.device, cache.dtype, head_dim) if cache.is_exact else None
        self._step = _compiled(self._scores) if compiled else self._scores
        self._inputs: dict[tuple[int, int], StepInputs] = {}

    @staticmethod
    def takes(chunks: Sequence[Chunk]) -> bool:
        """Whether each of the chunks is one token to be followed by another, without guesses, adapter and images."""
        return all(
            chunk.length == 1
            and chunk.is_last
            and not chunk.drafts
            and chunk.sequence.params.adapter is None
            and chunk.sequence.memory is None
            for chunk in chunks
        )

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' tokens, keep their keys and values, and score what follows.

        Returns:
            Logits fp32 [number of chunks, V], which the next run may write over.
        """
        if self._model.training:  # a trainer that rolls out has switched it
            self._model.eval()
        num_blocks = max(len(chunk.sequence.block_table) for chunk in chunks)
        shape = _at_least(len(chunks), self._sizes), _at_least(num_blocks, self._table_sizes)
        if shape not in self._inputs:
            self._inputs[shape] = StepInputs(*shape, self._cache.device, spare_block=self._cache.num_blocks - 1)
        inputs_BX = self._inputs[shape].filled(chunks)
        logits_BV = self._step(inputs_BX) if self._recorder is None else self._recorder.run(inputs_BX, self._step)
        return logits_BV[: len(chunks)]

    def _scores(self, inputs_BX: Tensor) -> Tensor:
        """The step itself: fp32 [B, V]."""
        positions_B = inputs_BX[:, POSITION]
        context = DecodeContext(self._cache, positions_B, inputs_BX[:, TABLE:], self._attention)
        return self._model.logits(self._model(inputs_BX[:, ID], positions_B, context))


def new_decode_step(
    model: LanguageModel,
    cache: PagedKVCache,
    *,
    max_sequences: int,
    max_context: int,
    recorded: bool,
    compiled: bool,
) -> DecodeStep:
    """A step as an engine asks for it; what can't be recorded on this device runs as it is.

    Raises:
        EngineError: a step of this model hangs on more than its input's shape.
    """
    records = recorded and cache.device.type == "cuda"
    if records or compiled:
        asked = "compile" if compiled else "decode_graphs"
        if not model.steps_are_fixed:
            raise EngineError(f"{type(model).__name__} decides within a step what to run", where=asked)
        formats = {m.packed.format for m in model.modules() if isinstance(m, Matrix) and m.packed is not None}
        for format in sorted(formats - (DEVICE_FORMATS.keys() if compiled else set())):
            if not codec_of(format).steps_are_fixed:
                raise EngineError(
                    f"products with weights in {format} decide within a step what to run",
                    where=asked,
                    hint="compile=True" if format in DEVICE_FORMATS else "load the model with packed=False",
                )
    recorder = Recorder(model, CudaDevice(cache.device)) if records else None
    limits = {"max_sequences": max_sequences, "max_context": max_context}
    return DecodeStep(model, cache, recorder=recorder, compiled=compiled, **limits)


def _compiled(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    compiled: Callable[[Tensor], Tensor] = torch.compile(step, fullgraph=True)

    def run(inputs_BX: Tensor) -> Tensor:
        for dim in range(inputs_BX.ndim):
            if inputs_BX.shape[dim] > 1:  # a size of 1 is compiled apart
                torch._dynamo.mark_dynamic(inputs_BX, dim)
        try:
            return compiled(inputs_BX)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise EngineError(
                f"the model's step can't be compiled: {reason}",
                hint="make the engine without compile, or install a C++ compiler",
            ) from error

    return run


class StepInputs:
    """The integers of steps of one shape; on the device they always lie in the same place.

    Args:
        num_rows: sequences with padding.
        num_blocks: of each sequence's table.
        device: where the steps run.
        spare_block: which fills up tables.
    """

    def __init__(self, num_rows: int, num_blocks: int, device: torch.device, *, spare_block: int) -> None:
        shape = (num_rows, TABLE + num_blocks)
        self._here = torch.full(shape, spare_block, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._there = torch.empty(shape, dtype=torch.int64, device=device)
        self._tables: list[list[int]] = [[] for _ in range(num_rows)]
        """What the rows' tables hold before the spare block."""
        self._spare_block = spare_block

    def filled(self, chunks: Sequence[Chunk]) -> Tensor:
        """The integers of a step, on the device: [B, 2 + N]."""
        num_padding = len(self._tables) - len(chunks)
        for row, table in enumerate([chunk.sequence.block_table for chunk in chunks] + [[]] * num_padding):
            # Tables change seldom, and comparing them costs less than writing them.
            if table != self._tables[row]:
                self._write_table(row, table)
        self._here[:, ID] = torch.tensor([chunk.token_ids[0] for chunk in chunks] + [0] * num_padding)
        self._here[:, POSITION] = torch.tensor([chunk.start for chunk in chunks] + [0] * num_padding)
        # The copy is over before these are written again: sampling waits for the scores.
        return self._there.copy_(self._here, non_blocking=True)

    def _write_table(self, row: int, table: list[int]) -> None:
        row_N, end = self._here[row, TABLE:], len(table)
        row_N[:end] = torch.tensor(table, dtype=torch.int64)
        row_N[end : len(self._tables[row])] = self._spare_block
        self._tables[row] = table.copy()


class DecodeContext(AttentionContext):
    """One new token of each sequence, behind what the cache holds of it.

    Args:
        cache: where keys and values are kept.
        positions_B: of the new tokens.
        tables_BN: the sequences' blocks, in order; what lies behind a sequence's own is any block.
        attention: what reads the blocks of an exact cache where they lie; None: they are gathered.
    """

    def __init__(
        self, cache: PagedKVCache, positions_B: Tensor, tables_BN: Tensor, attention: PagedAttention | None = None
    ) -> None:
        self._cache = cache
        self._tables_BN = tables_BN
        self._attention = attention
        self._positions_B1 = positions_B[:, None]
        size = cache.block_size
        own_blocks_B1 = tables_BN.gather(1, self._positions_B1 // size)
        self._own_slots_B1 = own_blocks_B1 * size + self._positions_B1 % size
        self._reads: dict[Reach | None, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, reach: Reach | None = None
    ) -> Tensor:
        """Write the new keys and values into their slots, then attend within each sequence."""
        keys, values = self._cache.write(layer, self._own_slots_B1.flatten(), k_TKD, v_TKD)
        if self._attention is None or not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            return self._gathered(q_THD, keys, values, scale, reach)
        positions_B = self._positions_B1[:, 0]
        first_keys_B = None if reach is None else reach.first_key(positions_B)
        where = self._tables_BN, positions_B, first_keys_B
        return self._attention(q_THD, keys, values, *where, self._cache.block_size, scale)

    def _gathered(self, q_BHD: Tensor, keys: Rows, values: Rows, scale: float, reach: Reach | None) -> Tensor:
        """Attention over a copy of all slots of the tables. Heads that share keys are taken for one head's queries."""
        slots, mask_B11L = self._reads.get(reach) or self._reads_within(reach)
        num_sequences, num_heads, head_dim = q_BHD.shape
        k_BKLD, v_BKLD = (
            rows.index_select(0, slots).view(num_sequences, len(slots) // num_sequences, -1, head_dim).transpose(1, 2)
            for rows in (keys, values)
        )
        num_kv = k_BKLD.shape[1]
        q_BKGD = q_BHD.reshape(num_sequences, num_kv, num_heads // num_kv, head_dim)
        out_BKGD = F.scaled_dot_product_attention(q_BKGD, k_BKLD, v_BKLD, attn_mask=mask_B11L, scale=scale)
        return out_BKGD.reshape(num_sequences, num_heads, head_dim)

    def _reads_within(self, reach: Reach | None) -> tuple[Tensor, Tensor]:
        """Slots to read, and which of them count; made once per step, by the first layer with this reach."""
        size = self._cache.block_size
        places = torch.arange(size, device=self._tables_BN.device)
        slots_BL = (self._tables_BN[:, :, None] * size + places).flatten(1)
        keys_L = torch.arange(slots_BL.shape[1], device=slots_BL.device)
        visible_BL = keys_L <= self._positions_B1
        if reach is not None:
            visible_BL &= keys_L >= reach.first_key(self._positions_B1)
        # What is not seen is read from the new token's slot: unwritten memory could hold NaN, which no mask removes.
        slots = slots_BL.where(visible_BL, self._own_slots_B1).flatten()
        self._reads[reach] = slots, visible_BL[:, None, None, :]
        return self._reads[reach]


def buckets(least: int, greatest: int) -> list[int]:
    """`least` and its doubles up to `greatest`, which is the last."""
    sizes = [least << shift for shift in range(max(greatest // least, 1).bit_length())]
    return [*takewhile(lambda size: size < greatest, sizes), greatest]


def _at_least(number: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= number)
