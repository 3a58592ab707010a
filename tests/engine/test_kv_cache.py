"""Paged attention equals attention over the whole sequence, whatever is mixed and wherever it lies."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine_model import TinyConfig

from camelid.engine import kv_cache
from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.model.attention import Chunks, Reach, Window

CONFIG = TinyConfig(num_hidden_layers=1)
SCALE = 0.3


def new_cache(num_blocks: int, block_size: int) -> PagedKVCache:
    """Filled with NaN, as memory that nobody has written to may be."""
    cache = PagedKVCache(CONFIG, num_blocks, block_size, device=torch.device("cpu"), dtype=torch.float64)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    return cache


def plain_attention(
    q_SHD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, reach: Reach | None = None
) -> torch.Tensor:
    """softmax(q kᵀ · scale) v under a causal mask, written out."""
    k, v = (x.repeat_interleave(q_SHD.shape[1] // x.shape[1], dim=1) for x in (k_SKD, v_SKD))
    scores = torch.einsum("shd,thd->hst", q_SHD, k) * SCALE
    keys, queries = torch.arange(len(k))[None, :], torch.arange(len(q_SHD))[:, None]
    hidden = keys > queries
    if isinstance(reach, Window):
        hidden |= queries - keys >= reach.size
    if isinstance(reach, Chunks):
        hidden |= keys // reach.size != queries // reach.size
    return torch.einsum("hst,thd->shd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def attend_in_steps(
    lengths: list[list[int]], tables: list[list[int]], cache: PagedKVCache, reach: Reach | None = None
) -> None:
    """Run sequence i in chunks lengths[i], all sequences side by side, and compare every token with plain attention."""
    generator = torch.Generator().manual_seed(0)
    totals = [sum(chunks) for chunks in lengths]
    q, k, v = (
        [torch.randn(total, heads, 8, dtype=torch.float64, generator=generator) for total in totals]
        for heads in (4, 2, 2)
    )
    expected = [plain_attention(*qkv, reach) for qkv in zip(q, k, v, strict=True)]
    done = [0] * len(lengths)
    for step in range(max(map(len, lengths))):
        active = [i for i, chunks in enumerate(lengths) if step < len(chunks)]
        spans = [slice(done[i], done[i] + lengths[i][step]) for i in active]
        context = PagedContext(
            cache, [lengths[i][step] for i in active], [done[i] for i in active], [tables[i] for i in active]
        )
        assert context.positions.tolist() == [p for span in spans for p in range(span.start, span.stop)]
        flat = [torch.cat([x[i][span] for i, span in zip(active, spans, strict=True)]) for x in (q, k, v)]
        wanted = torch.cat([expected[i][span] for i, span in zip(active, spans, strict=True)])
        torch.testing.assert_close(context.attend(0, *flat, scale=SCALE, reach=reach), wanted)
        for i in active:
            done[i] += lengths[i][step]


@pytest.mark.parametrize("table", [[0, 1, 2], [3, 4, 5], [5, 0, 3]], ids=["at the start", "in one piece", "scattered"])
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [3, 1, 1, 4]], ids=str)
def test_one_sequence(chunks: list[int], table: list[int]) -> None:
    attend_in_steps([chunks], [table], new_cache(6, 3))


def test_a_batch_of_decoding_sequences() -> None:
    attend_in_steps([[3, 1, 1], [5, 1, 1], [5, 1, 1]], [[0, 4], [1, 2, 7], [3, 6, 5]], new_cache(8, 3))


def test_decoding_beside_prefill_and_continued_prefill() -> None:
    lengths = [[2, 1, 1], [2, 3, 2], [4, 1, 1], [1, 1, 4], [3, 2]]
    attend_in_steps(lengths, [[9, 2], [1, 5, 0], [3, 7], [4, 6], [8, 10]], new_cache(11, 3))


def test_long_sequences_attend_one_by_one_beside_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "LONG", 6)
    attend_in_steps([[3, 1], [7, 1], [2, 1], [5, 1, 1]], [[0], [3, 1, 2], [7], [4, 5, 6]], new_cache(8, 4))


@settings(deadline=None)
@given(st.data())
def test_any_mix(data: st.DataObject) -> None:
    block_size = data.draw(st.sampled_from([1, 2, 5]))
    lengths = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=5))
    counts = [-(-sum(chunks) // block_size) for chunks in lengths]
    order = data.draw(st.permutations(range(sum(counts))))
    tables = [[order.pop() for _ in range(count)] for count in counts]
    reach = data.draw(st.none() | st.builds(Window, st.integers(1, 9)) | st.builds(Chunks, st.integers(1, 9)))
    attend_in_steps(lengths, tables, new_cache(sum(counts), block_size), reach)


@pytest.mark.parametrize("reach", [Window(3), Chunks(4)], ids=str)
def test_layers_of_one_step_may_reach_differently(reach: Reach) -> None:
    cache = PagedKVCache(TinyConfig(num_hidden_layers=3), 4, 4, device=torch.device("cpu"), dtype=torch.float64)
    q, k, v = (torch.randn(11, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    parts = [slice(0, 6), slice(6, 10), slice(10, 11)]

    for part in parts:
        context = PagedContext(cache, [part.stop - part.start], [part.start], [[2, 0, 1]])
        for layer, its_reach in enumerate([reach, None, reach]):
            out = context.attend(layer, q[part], k[part], v[part], scale=SCALE, reach=its_reach)
            torch.testing.assert_close(out, plain_attention(q, k, v, its_reach)[part])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process its memory")
def test_memory_is_committed_only_where_tokens_lie() -> None:
    config = TinyConfig(num_key_value_heads=8, head_dim=64, num_hidden_layers=4)
    before = resident_bytes()
    cache = PagedKVCache(config, 2048, 16, device=torch.device("cpu"), dtype=torch.float32)
    num_bytes = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert num_bytes == PagedKVCache.bytes_per_token(config, torch.float32) * 2048 * 16 == 2**29
    assert resident_bytes() - before < 2**24
