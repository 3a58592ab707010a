"""Native attention over a paged cache against the definition in double precision, for every instruction set here."""

from __future__ import annotations

import math
from itertools import accumulate, chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.engine.kv_cache import PagedContext, PagedKVCache, QuantizedKVCache
from camelid.kernels.attention import vector_widths
from camelid.kernels.paged import PagedLayout, paged_attention, paged_attention_runs_on
from camelid.model.attention import Chunks, Reach, Window, causal_attention, visible_keys
from camelid.model.llama import LlamaConfig

SETS = list(vector_widths())

pytestmark = pytest.mark.skipif(not SETS, reason="no attention kernel was built, or this processor runs none of them")

Sequence = tuple[int, int]
"""New tokens, and tokens in the cache before them."""


class Case:
    """A cache full of random numbers, with sequences whose blocks lie anywhere in it."""

    def __init__(self, sequences: list[Sequence], heads: tuple[int, int], dim: int, block_size: int) -> None:
        generator = torch.Generator().manual_seed(len(sequences))
        num_blocks = [-(-(new + cached) // block_size) for new, cached in sequences]
        blocks = torch.randperm(sum(num_blocks) + 3, generator=generator).tolist()
        self.sequences, self.block_size = sequences, block_size
        self.tables = [[blocks.pop() for _ in range(num)] for num in num_blocks]
        num_tokens, num_slots = sum(new for new, _ in sequences), (sum(num_blocks) + 3) * block_size
        self.q = torch.randn(num_tokens, heads[0], dim, generator=generator)
        self.keys, self.values = (torch.randn(num_slots, heads[1], dim, generator=generator) for _ in range(2))

    def starts(self) -> list[int]:
        return [sum(new for new, _ in self.sequences[:n]) for n in range(len(self.sequences))]

    def native(self, name: str, reach: Reach | None = None) -> torch.Tensor:
        first_entries = accumulate(map(len, self.tables), initial=0)
        rows = zip(self.starts(), self.sequences, first_entries, strict=False)
        rows_N4 = torch.tensor([(start, new, cached, first) for start, (new, cached), first in rows])
        where = PagedLayout(rows_N4, torch.tensor(list(chain.from_iterable(self.tables))), self.block_size)
        kind = ("all", 0) if reach is None else ("window" if isinstance(reach, Window) else "chunk", reach.size)
        with torch.no_grad():
            return paged_attention(self.q, self.keys, self.values, where, scale=0.2, reach=kind, instruction_set=name)

    def exact(self, reach: Reach | None = None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        outs = []
        for start, (new, cached), table in zip(self.starts(), self.sequences, self.tables, strict=True):
            positions = torch.arange(cached + new)
            slots = torch.tensor(table)[positions // self.block_size] * self.block_size + positions % self.block_size
            q, k, v = self.q[start : start + new], self.keys[slots], self.values[slots]
            mask = visible_keys(range(cached, cached + new), 0, reach, q.device)
            outs.append(causal_attention(*(x[None].to(dtype) for x in (q, k, v)), scale=0.2, mask=mask)[0])
        return torch.cat(outs)


sequences = st.lists(st.tuples(st.integers(1, 140), st.integers(0, 200)), min_size=1, max_size=5)
decoding = st.lists(st.tuples(st.just(1), st.integers(0, 200)), min_size=1, max_size=9)
reaches = st.one_of(st.none(), st.integers(1, 150).map(Window), st.integers(1, 150).map(Chunks))


@settings(max_examples=80, deadline=None)
@given(
    sequences=st.one_of(sequences, decoding),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1), (9, 3)]),
    dim=st.sampled_from([16, 48, 64, 80]),
    block_size=st.sampled_from([1, 5, 16, 64]),
    reach=reaches,
    name=st.sampled_from(SETS or [""]),
)
def test_it_is_the_definition(
    sequences: list[Sequence], heads: tuple[int, int], dim: int, block_size: int, reach: Reach | None, name: str
) -> None:
    case = Case(sequences, heads, dim, block_size)

    out, exact = case.native(name, reach), case.exact(reach)

    assert (out - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("reach", [None, Window(70), Chunks(50)], ids=str)
def test_bits_hang_neither_on_the_company_nor_on_the_pieces_nor_on_the_place(name: str, reach: Reach | None) -> None:
    """One sequence of 200 tokens at once, then token by token and in pieces, beside others and in other blocks."""
    whole = Case([(200, 0)], (6, 2), 48, 16)
    expected = whole.native(name, reach)
    for first, end in [(0, 1), (63, 64), (64, 65), (150, 151), (199, 200), (10, 150), (70, 200), (128, 192)]:
        parts = Case([(3, 9), (end - first, first), (1, 130)], (6, 2), 48, 5)
        parts.q[3 : 3 + end - first] = whole.q[first:end]
        for position in range(end):
            slot = whole.tables[0][position // 16] * 16 + position % 16
            other = parts.tables[1][position // 5] * 5 + position % 5
            parts.keys[other], parts.values[other] = whole.keys[slot], whole.values[slot]
        assert torch.equal(parts.native(name, reach)[3 : 3 + end - first], expected[first:end])


def test_threads_change_no_bit() -> None:
    case, before, found = Case([(300, 20), (1, 500), (1, 3)], (9, 3), 64, 16), torch.get_num_threads(), []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            found.append([case.native(name) for name in SETS])
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("size", "bound"), [(1e2, 3e-5), (1e4, 1e-3), (1e10, 1e-6), (1e30, 1e-6)])
def test_huge_scores_choose_a_key(name: str, size: float, bound: float) -> None:
    """A score rounds by some 1e-7 of itself, which shows where it is less than 1 from the largest: ever more seldom.

    Of size 100 they reach 484 and round by up to 1.5e-5: two of them may move a quarter of 3e-5 from one value to
    another, which is some 4 apart. The order of the sums decides whether that happens.
    """
    case = Case([(1, 150), (40, 80)], (2, 1), 32, 16)
    case.q *= size

    assert (case.native(name) - case.exact()).abs().max() <= bound


@pytest.mark.parametrize("name", SETS)
def test_what_is_no_number_stays_in_its_sequence(name: str) -> None:
    case = Case([(1, 40), (2, 100), (1, 70)], (2, 1), 32, 16)
    expected = case.native(name)
    case.keys[case.tables[1][2] * 16 + 3, 0, 5] = math.nan

    out = case.native(name)

    assert out[1:3].isnan().all()
    assert torch.equal(out[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("kind", [PagedKVCache, QuantizedKVCache])
@pytest.mark.parametrize("reach", [None, Window(10), Chunks(16)], ids=str)
def test_a_context_attends_as_its_routes_do(
    kind: type[PagedKVCache], reach: Reach | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=96, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=256, head_dim=16,
    )  # fmt: skip
    tables = [[7], [0, 1, 2, 3, 4, 5], [20, 18, 19, 10, 11, 12, 13]]
    outs = []
    for natively in (True, False):
        monkeypatch.setattr("camelid.engine.kv_cache.paged_attention_runs_on", paged_attention_runs_on)
        if not natively:
            monkeypatch.setattr("camelid.engine.kv_cache.paged_attention_runs_on", lambda *_: False)
        generator = torch.Generator().manual_seed(0)
        cache = kind(config, 21, 16, device=torch.device("cpu"), dtype=torch.float32)
        past = [torch.randn(21 * 16, 3, 16, generator=generator) for _ in range(2)]
        cache.write(1, slice(0, 21 * 16), *past)
        q, k, v = (torch.randn(76, heads, 16, generator=generator) for heads in (6, 3, 3))
        with torch.no_grad():
            context = PagedContext(cache, [5, 1, 70], [0, 90, 30], tables)
            assert paged_attention_runs_on(q, past[0])
            outs.append(context.attend(1, q, k, v, scale=0.25, reach=reach))

    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


def test_other_tensors_take_torchs_way() -> None:
    q, keys = torch.zeros(2, 4, 32), torch.zeros(16, 2, 32)
    assert not paged_attention_runs_on(q, keys), "gradients may be wanted"
    with torch.no_grad():
        assert paged_attention_runs_on(q, keys)
        assert not paged_attention_runs_on(q.double(), keys.double())
        assert not paged_attention_runs_on(q[..., :12], keys[..., :12])
        assert not paged_attention_runs_on(q, keys.to(torch.int8))
        assert paged_attention_runs_on(q, keys.to(torch.int8), (keys[..., :1], keys[..., :1]))


@pytest.mark.parametrize("table", [[0, 1], [0, 1, 21], [0, 1, -1]])
def test_a_block_table_that_leads_astray_is_caught_before_anything_is_written(table: list[int]) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=256, head_dim=32,
    )  # fmt: skip
    cache = PagedKVCache(config, 21, 16, device=torch.device("cpu"), dtype=torch.float32)
    PagedContext(cache, [1], [40], [[0, 1, 20]])
    with pytest.raises(AssertionError, match="block table"):
        PagedContext(cache, [1], [40], [table])
