"""Causal attention against its definition."""

from __future__ import annotations

import pytest
import torch

from camelid.model.attention import Chunks, PackedContext, Reach, Window, causal_attention


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Loops over every query, its visible keys and its head's key/value head; q [B, S, H, D], k and v [B, L, K, D]."""
    out = torch.zeros_like(q)
    past, group = k.shape[1] - q.shape[1], q.shape[2] // k.shape[2]
    for b, s, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys, values = k[b, : past + s + 1, h // group], v[b, : past + s + 1, h // group]
        out[b, s, h] = ((keys @ q[b, s, h]) * scale).softmax(-1) @ values
    return out


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize(("num_new", "num_keys"), [(1, 1), (1, 9), (5, 5), (3, 9)])
def test_every_query_sees_its_past_and_itself(heads: tuple[int, int], num_new: int, num_keys: int) -> None:
    q = torch.randn(2, num_new, heads[0], 8)
    k, v = torch.randn(2, num_keys, heads[1], 8), torch.randn(2, num_keys, heads[1], 8)

    torch.testing.assert_close(causal_attention(q, k, v, scale=0.3), by_definition(q, k, v, 0.3))


@pytest.mark.parametrize("lengths", [(6,), (3, 3), (1, 4, 1)])
def test_packed_sequences_attend_within_themselves(lengths: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(sum(lengths), heads, 8) for heads in (4, 2, 2))

    out = PackedContext(lengths).attend(0, q, k, v, scale=0.3)

    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([by_definition(q[None], k[None], v[None], 0.3)[0] for q, k, v in parts])
    torch.testing.assert_close(out, expected)


def within(reach: Reach, query: int, key: int) -> bool:
    """Whether a query sees a key of its past, by the definition in words."""
    if isinstance(reach, Window):
        return query - key < reach.size
    return query // reach.size == key // reach.size


@pytest.mark.parametrize("reach", [Window(1), Window(3), Window(50), Chunks(1), Chunks(4), Chunks(50)], ids=str)
@pytest.mark.parametrize("lengths", [(9,), (6, 6), (1, 10, 3)])
def test_a_query_sees_no_further_than_its_reach(reach: Reach, lengths: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(sum(lengths), heads, 8, dtype=torch.float64) for heads in (4, 2, 2))

    out = PackedContext(lengths).attend(0, q, k, v, scale=0.3, reach=reach)

    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        for query in range(length):
            seen = torch.tensor([start + key for key in range(query + 1) if within(reach, query, key)])
            here = q[start + query][None, None]
            expected = causal_attention(here, k[None, seen], v[None, seen], scale=0.3)[0, 0]
            torch.testing.assert_close(out[start + query], expected)


def test_positions_start_at_zero_in_every_sequence() -> None:
    assert PackedContext([2, 1, 3]).positions().tolist() == [0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("lengths", [(5, 5), (4, 5), ()])
def test_lengths_that_do_not_sum_to_the_tokens_are_refused(lengths: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(12, heads, 8) for heads in (4, 2, 2))

    with pytest.raises(AssertionError, match="sum to the tokens"):
        PackedContext(lengths).attend(0, q, k, v, scale=0.3)
