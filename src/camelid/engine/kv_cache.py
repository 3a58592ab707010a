"""Keys and values of past tokens, in blocks, and attention over them.

A sequence's block table lists its blocks in order; the token at position p lies in slot
`block_table[p // block_size] * block_size + p % block_size` (Kwon et al. 2023, "Efficient Memory Management for Large
Language Model Serving with PagedAttention", §4.1).

Shape suffixes: T tokens of all sequences end to end, B sequences, S tokens of one sequence, L tokens of one sequence
with its cached past, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from camelid.kernels.paged import (
    PagedLayout,
    paged_attention,
    paged_attention_runs_on,
    store_rows,
    stores_natively,
)
from camelid.kernels.stack import PagedPlace, Wanted, Workspace
from camelid.model.attention import AttentionContext, PackedContext, Window, causal_attention, visible_keys
from camelid.model.image_memory import image_reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.model.attention import Reach
    from camelid.model.base import ModelConfig
    from camelid.model.image_memory import ImageMemory, ImageReads

LONG = 1024
"""Decoding sequences of at least so many tokens attend one by one on a CPU. Per layer with 8 sequences, 9 query and 3
key heads of 64, fp32, two cores: together 0.40 ms (512 tokens) and 4.8 ms (2048), one by one 0.49 ms and 3.4 ms, since
a gathered copy of all falls out of the processor's cache."""


class PagedKVCache:
    """The storage: per layer a tensor of keys and one of values, [num_blocks * block_size, K, D].

    The memory is asked for but not written to; a CPU's operating system commits it only where tokens come to lie.
    `dtype` is the one that the model computes in.
    """

    is_exact = True
    """Whether what is read is what was written."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self.dtype = dtype
        shape = (num_blocks * block_size, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_cached_layers)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self.workspace = Workspace()
        """For steps whose blocks run in one native call."""

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Keys and values of one token in all layers."""
        return config.kv_elements_per_token * dtype.itemsize

    def tensors(self) -> list[tuple[str, Tensor]]:
        """All storage by name; the first dimension of each is slots."""
        return [
            (f"{kind}.{layer}", tensor)
            for kind, layers in (("keys", self.keys), ("values", self.values))
            for layer, tensor in enumerate(layers)
        ]

    def write(self, layer: int, slots: slice | Tensor, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Rows, Rows]:
        """Store the keys and values of T tokens, and return the layer's whole storage."""
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(slots, slice):
            keys[slots] = k_TKD
            values[slots] = v_TKD
        elif stores_natively(k_TKD, v_TKD, keys, values):
            store_rows(k_TKD, v_TKD, slots, keys, values)
        else:
            keys.index_copy_(0, slots, k_TKD)
            values.index_copy_(0, slots, v_TKD)
        return keys, values


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Keys or values of one layer in 8 bits, with a scale for each token and head: what is read is dequantised."""

    codes: Tensor
    """int8 [slots, K, D]."""
    scales: Tensor
    """[slots, K, 1]."""

    def __getitem__(self, slots: slice | Tensor) -> Tensor:
        return self.codes[slots] * self.scales[slots]

    def index_select(self, dim: int, slots: Tensor) -> Tensor:
        """Some slots' rows."""
        return self.codes.index_select(dim, slots) * self.scales.index_select(dim, slots)

    def write(self, slots: slice | Tensor, x_TKD: Tensor) -> None:
        """Round to the nearest of 255 steps up to the greatest magnitude of each token and head."""
        scales_TK1 = x_TKD.abs().amax(-1, keepdim=True) / 127
        codes_TKD = (x_TKD / scales_TK1.clamp(min=torch.finfo(x_TKD.dtype).tiny)).round()
        self.codes[slots] = codes_TKD.to(torch.int8)
        self.scales[slots] = scales_TK1


Rows: TypeAlias = Tensor | QuantizedRows
"""One layer's keys or values, read by slots."""


class QuantizedKVCache(PagedKVCache):
    """The same in 8 bits: a quarter of fp32's memory, half of bf16's, and a little more for the scales.

    A key or value is off by at most 1/254 of the greatest magnitude of its token and head. All attention reads what is
    stored, the newest tokens included, so that chunks, batches and shared prefixes change nothing.
    """

    is_exact = False

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(config, num_blocks, block_size, device=device, dtype=torch.int8)
        self.dtype = dtype
        shape = (num_blocks * block_size, config.num_key_value_heads, 1)
        self.key_rows, self.value_rows = (
            [QuantizedRows(codes, torch.empty(shape, device=device, dtype=dtype)) for codes in layers]
            for layers in (self.keys, self.values)
        )

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Keys, values and their scales of one token in all layers."""
        num_scales = config.kv_elements_per_token // config.head_dim
        return config.kv_elements_per_token + num_scales * dtype.itemsize

    def tensors(self) -> list[tuple[str, Tensor]]:
        """All storage by name; the first dimension of each is slots."""
        scales = [
            (f"{kind}.{layer}.scales", rows.scales)
            for kind, layers in (("keys", self.key_rows), ("values", self.value_rows))
            for layer, rows in enumerate(layers)
        ]
        return [*super().tensors(), *scales]

    def write(self, layer: int, slots: slice | Tensor, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Rows, Rows]:
        """Store the keys and values of T tokens, and return the layer's whole storage."""
        keys, values = self.key_rows[layer], self.value_rows[layer]
        keys.write(slots, k_TKD)
        values.write(slots, v_TKD)
        return keys, values


CACHES = {"exact": PagedKVCache, "q8": QuantizedKVCache}
"""How keys and values are kept: in the model's dtype, or in 8 bits."""


class PagedContext(AttentionContext):
    """Where the tokens of one step belong: any mix of prefill chunks and decoded tokens.

    Everything that the layers share (slots, masks, which keys to read) is computed once per step. On a CPU with the
    kernel for it, attention reads the blocks where they lie; elsewhere each of several routes serves some sequences.

    Args:
        cache: where keys and values are kept.
        query_lens: tokens of each sequence that run now; they sum to T.
        cached_lens: tokens of each sequence that the cache holds already.
        block_tables: blocks of each sequence, enough for both.
        memories: what each sequence has of images; left out: nobody has any.
        wanted_lens: how many of each sequence's tokens, the last ones, are asked for their final hidden states; left
            out: all.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        query_lens: Sequence[int],
        cached_lens: Sequence[int],
        block_tables: Sequence[list[int]],
        memories: Sequence[ImageMemory | None] | None = None,
        wanted_lens: Sequence[int] | None = None,
    ) -> None:
        self._cache = cache
        self._sequences = query_lens, cached_lens, block_tables
        size = cache.block_size
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        tables: list[int] = []
        for query_len, cached_len, block_table in zip(query_lens, cached_lens, block_tables, strict=True):
            total = cached_len + query_len
            assert len(block_table) * size >= total, "a block table is too short"
            rows += (len(positions), query_len, cached_len, len(tables))
            tables += block_table
            for position in range(cached_len, total):
                positions.append(position)
                slots.append(block_table[position // size] * size + position % size)
        # The native kernels ask no more.
        assert 0 <= min(tables) <= max(tables) < cache.num_blocks, "a block table names blocks that are not there"
        self.positions = integers(positions, cache.device)
        """Position of each token in its own sequence, int64 [T]."""
        self._slots_T = integers(slots, cache.device)
        self._rows, self._tables = rows, tables
        self.images: ImageReads | None = None
        if memories is not None and any(memory is not None for memory in memories):
            self.images = image_reads([range(span.cached_len, span.total) for span in self._spans], memories)
        self._routes: dict[Reach | None, list[_Route]] = {}
        self._wanted_lens = query_lens if wanted_lens is None else wanted_lens
        if self._wanted_lens != query_lens:
            wanted = [
                row for span, num in zip(self._spans, self._wanted_lens, strict=True) for row in span.last_rows(num)
            ]
            self.wanted_rows = torch.tensor(wanted, dtype=torch.int64, device=cache.device)

    def attend(
        self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, reach: Reach | None = None
    ) -> Tensor:
        """Write the new keys and values into their slots, then attend within each sequence, its past included."""
        keys, values = self._cache.write(layer, self._slots, k_TKD, v_TKD)
        if (out_THD := self._attend_natively(q_THD, keys, values, scale, reach)) is not None:
            return out_THD
        routes = self._routes_within(reach)
        if len(routes) == 1:
            return routes[0].attend(q_THD, k_TKD, v_TKD, keys, values, scale)
        out_THD = torch.empty_like(q_THD)
        for route in routes:
            out_THD[route.rows] = route.attend(q_THD, k_TKD, v_TKD, keys, values, scale)
        return out_THD

    def paged_place(self) -> PagedPlace | None:
        """Where the tokens lie in the cache, if that is in fp32 on a CPU."""
        cache = self._cache
        if not cache.is_exact or cache.device.type != "cpu" or cache.dtype != torch.float32:
            return None
        return PagedPlace(cache.keys, cache.values, self._slots_T, self._layout, self._wanted, cache.workspace)

    @property
    def _wanted(self) -> Wanted | None:
        if self.wanted_rows is None:
            return None
        sequences: list[tuple[int, int, int, int]] = []
        start = 0
        first_blocks = self._layout.sequences_N4[:, 3].tolist()
        for span, num, first_block in zip(self._spans, self._wanted_lens, first_blocks, strict=True):
            if num > 0:
                sequences.append((start, num, span.total - num, first_block))
                start += num
        return Wanted(self.wanted_rows, torch.tensor(sequences, dtype=torch.int64, device="cpu"))

    @cached_property
    def _spans(self) -> list[Span]:
        starts = accumulate(self._sequences[0], initial=0)
        return [Span(*span) for span in zip(starts, *self._sequences, strict=False)]

    @cached_property
    def _slots(self) -> slice | Tensor:
        """Of the T new tokens; a slice if one sequence runs and lies in one piece."""
        [first_span, *others] = self._spans
        if others or (first := first_span.first_slot(self._cache.block_size)) is None:
            return self._slots_T
        return slice(first + first_span.cached_len, first + first_span.total)

    def _attend_natively(
        self, q_THD: Tensor, keys: Rows, values: Rows, scale: float, reach: Reach | None
    ) -> Tensor | None:
        scales = None
        if isinstance(keys, QuantizedRows) and isinstance(values, QuantizedRows):
            scales = keys.scales, values.scales
            keys, values = keys.codes, values.codes
        assert isinstance(keys, Tensor)
        assert isinstance(values, Tensor)
        if not paged_attention_runs_on(q_THD, keys, scales):
            return None
        kind = "all" if reach is None else "window" if isinstance(reach, Window) else "chunk"
        size = 0 if reach is None else reach.size
        return paged_attention(q_THD, keys, values, self._layout, scale=scale, scales=scales, reach=(kind, size))

    @cached_property
    def _layout(self) -> PagedLayout:
        rows_N4, tables = (integers(numbers, self._cache.device) for numbers in (self._rows, self._tables))
        return PagedLayout(rows_N4.view(-1, 4), tables, self._cache.block_size)

    def _routes_within(self, reach: Reach | None) -> list[_Route]:
        """Made once per step, by the first layer with this reach."""
        if reach is not None and all(span.sees_all(reach) for span in self._spans):
            reach = None
        if reach not in self._routes:
            self._routes[reach] = _routes(self._spans, self._cache, reach)
        return self._routes[reach]


def integers(numbers: list[int], device: torch.device) -> Tensor:
    """An int64 tensor of one or more numbers. Behind a forward pass `torch.tensor` takes 37 µs for 16 of them, this 16.
    (To cut one tensor for several lists is no quicker.)"""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64).to(device)


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of the step: tokens start … start + query_len of T."""

    start: int
    query_len: int
    cached_len: int
    block_table: list[int]

    @property
    def total(self) -> int:
        """Tokens of the sequence after the step."""
        return self.cached_len + self.query_len

    @property
    def rows(self) -> slice:
        """Its tokens among the T."""
        return slice(self.start, self.start + self.query_len)

    def last_rows(self, num: int) -> range:
        """Its last tokens among the T."""
        assert 0 <= num <= self.query_len
        return range(self.rows.stop - num, self.rows.stop)

    def sees_all(self, reach: Reach | None) -> bool:
        """Whether each query sees the whole of its past."""
        return reach is None or reach.first_key(self.total - 1) <= 0

    def first_slot(self, block_size: int) -> int | None:
        """The slot of position 0 if the sequence lies in one piece, else None."""
        first = self.block_table[0]
        in_one_piece = self.block_table == list(range(first, first + len(self.block_table)))
        return first * block_size if in_one_piece else None


class _Route(Protocol):
    """How some of the sequences attend."""

    @property
    def rows(self) -> slice | Tensor:
        """The tokens it serves."""

    def attend(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, keys: Rows, values: Rows, scale: float) -> Tensor:
        """The attended values of its tokens. `keys` and `values` are the layer's cache, new tokens included."""


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A sequence without a past: its keys and values are those at hand."""

    rows: slice

    def attend(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, keys: Rows, values: Rows, scale: float) -> Tensor:
        q, k, v = (x[None, self.rows] for x in (q_THD, k_TKD, v_TKD))
        return causal_attention(q, k, v, scale=scale)[0]


@dataclass(frozen=True, slots=True)
class _FreshTogether:
    """Sequences without a past that lie side by side, on a device where one call serves them all."""

    rows: slice
    context: PackedContext

    def attend(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, keys: Rows, values: Rows, scale: float) -> Tensor:
        q, k, v = (x[self.rows] for x in (q_THD, k_TKD, v_TKD))
        return self.context.attend(0, q, k, v, scale=scale)


@dataclass(frozen=True, slots=True)
class _Continued:
    """A sequence with a past, read where it lies if that is in one piece, else gathered."""

    rows: slice
    slots: slice | Tensor
    mask_SL: Tensor | None

    def attend(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, keys: Rows, values: Rows, scale: float) -> Tensor:
        k, v = (x[self.slots][None] for x in (keys, values))
        return causal_attention(q_THD[None, self.rows], k, v, scale=scale, mask=self.mask_SL)[0]


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Sequences with one new token each, gathered and padded to one length."""

    rows: slice | Tensor
    slots: Tensor
    mask_B11L: Tensor | None
    num_sequences: int

    def attend(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, keys: Rows, values: Rows, scale: float) -> Tensor:
        q_B1HD = q_THD[self.rows].unsqueeze(1)
        k, v = (self._padded(x.index_select(0, self.slots)) for x in (keys, values))
        return causal_attention(q_B1HD, k, v, scale=scale, mask=self.mask_B11L).squeeze(1)

    def _padded(self, x_NKD: Tensor) -> Tensor:
        return x_NKD.view(self.num_sequences, -1, *x_NKD.shape[1:])


def _routes(spans: list[Span], cache: PagedKVCache, reach: Reach | None = None) -> list[_Route]:
    longest = LONG if cache.device.type == "cpu" else math.inf
    together = [
        span
        for span in spans
        if span.query_len == 1 and span.cached_len > 0 and span.total < longest and span.sees_all(reach)
    ]
    if len(together) < 2:
        together = []
    fresh = _side_by_side(spans) if cache.device.type == "cuda" and cache.is_exact and reach is None else []
    grouped = {span.start for span in (*together, *fresh)}
    routes: list[_Route] = [
        _alone(span, cache) if reach is None or span.sees_all(reach) else _within(reach, span, cache)
        for span in spans
        if span.start not in grouped
    ]
    if together:
        routes.append(_decoded(together, cache))
    if fresh:
        context = PackedContext([span.query_len for span in fresh], cache.device)
        routes.append(_FreshTogether(slice(fresh[0].start, fresh[-1].rows.stop), context))
    return routes


def _side_by_side(spans: list[Span]) -> list[Span]:
    """The sequences without a past, if there are several and no other lies between them."""
    fresh = [span for span in spans if span.cached_len == 0]
    num_tokens = sum(span.query_len for span in fresh)
    in_one_piece = len(fresh) > 1 and fresh[-1].rows.stop - fresh[0].start == num_tokens
    return fresh if in_one_piece else []


def _alone(span: Span, cache: PagedKVCache) -> _Route:
    if span.cached_len == 0 and cache.is_exact:
        return _Fresh(span.rows)
    mask = None
    if span.query_len > 1 and span.cached_len > 0:
        hidden = torch.full((span.query_len, span.total), -math.inf, device=cache.device, dtype=cache.dtype)
        mask = hidden.triu(span.cached_len + 1)
    first = span.first_slot(cache.block_size)
    if first is not None:
        return _Continued(span.rows, slice(first, first + span.total), mask)
    return _Continued(span.rows, _slots_to_read([span], cache)[0, : span.total], mask)


def _within(reach: Reach, span: Span, cache: PagedKVCache) -> _Continued:
    """A sequence that sees less than its past reads from the first key that any of its queries sees."""
    queries = range(span.cached_len, span.total)
    first_key = max(reach.first_key(queries.start), 0)
    mask = visible_keys(queries, first_key, reach, cache.device) if len(queries) > 1 else None
    first = span.first_slot(cache.block_size)
    if first is not None:
        return _Continued(span.rows, slice(first + first_key, first + span.total), mask)
    return _Continued(span.rows, _slots_to_read([span], cache)[0, first_key : span.total], mask)


def _decoded(spans: list[Span], cache: PagedKVCache) -> _Decoded:
    slots_BL = _slots_to_read(spans, cache)
    totals_B1 = torch.tensor([[span.total] for span in spans], device=cache.device)
    longest = max(span.total for span in spans)
    is_padding_BL = torch.arange(longest, device=cache.device) >= totals_B1
    # Padding reads the sequence's own first token: unwritten memory could hold NaN, which no mask removes.
    slots_BL = slots_BL[:, :longest].where(~is_padding_BL, slots_BL[:, :1])
    mask_B11L = None
    if any(span.total < longest for span in spans):
        mask_B11L = torch.zeros(slots_BL.shape, device=cache.device, dtype=cache.dtype)
        mask_B11L = mask_B11L.masked_fill_(is_padding_BL, -math.inf)[:, None, None, :]
    first, last = spans[0].start, spans[-1].start
    rows: slice | Tensor = slice(first, last + 1)
    if last - first + 1 != len(spans):
        rows = torch.tensor([span.start for span in spans], device=cache.device)
    return _Decoded(rows, slots_BL.flatten(), mask_B11L, len(spans))


def _slots_to_read(spans: list[Span], cache: PagedKVCache) -> Tensor:
    """All slots of each sequence's blocks [B, L rounded up to blocks]; shorter tables repeat their first block."""
    num_blocks = max(-(-span.total // cache.block_size) for span in spans)
    tables = [(span.block_table + [span.block_table[0]] * num_blocks)[:num_blocks] for span in spans]
    tables_BN1 = torch.tensor(tables, device=cache.device)[:, :, None]
    return (tables_BN1 * cache.block_size + torch.arange(cache.block_size, device=cache.device)).flatten(1)
