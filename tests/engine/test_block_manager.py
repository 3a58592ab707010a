"""Blocks are handed out once and all come back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.engine.block_manager import BlockManager


def test_a_table_grows_only_when_its_last_block_is_full() -> None:
    blocks, table = BlockManager(4, block_size=4), []
    lengths = []
    for num_tokens in range(1, 13):
        assert blocks.reserve(table, num_tokens)
        lengths.append(len(table))
    assert lengths == [1] * 4 + [2] * 4 + [3] * 4
    assert blocks.num_free == 1


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    blocks, first, second = BlockManager(4, block_size=4), [], []
    assert blocks.reserve(first, 8)
    assert not blocks.reserve(second, 12)
    assert not blocks.reserve(second, 8, leave_free=1)
    assert (second, blocks.num_free) == ([], 2)
    assert blocks.reserve(second, 8)


def test_a_lone_sequence_lies_in_one_piece() -> None:
    blocks, first, second, third = BlockManager(9, block_size=1), [], [], []
    for num_tokens in (1, 2, 3):
        blocks.reserve(first, num_tokens)
        blocks.reserve(second, num_tokens)
    blocks.release(first)
    blocks.release(second)
    for num_tokens in range(1, 10):
        blocks.reserve(third, num_tokens)
    assert third == list(range(9))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=60))
def test_no_block_has_two_holders_and_none_is_lost(moves: list[tuple[int, int, bool]]) -> None:
    blocks = BlockManager(10, block_size=3)
    tables: list[list[int]] = [[], [], [], []]
    for which, num_tokens, release in moves:
        if release:
            blocks.release(tables[which])
        else:
            blocks.reserve(tables[which], num_tokens)
        held = [block for table in tables for block in table]
        assert len(set(held)) == len(held)
        assert all(0 <= block < 10 for block in held)
        assert blocks.num_free == 10 - len(held)
