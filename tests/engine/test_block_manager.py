"""Blocks are handed out once and all come back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.engine.block_manager import BlockManager, next_key, root_key


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


def test_a_block_is_found_by_what_it_holds_until_its_room_is_needed() -> None:
    blocks, first, second = BlockManager(4, block_size=2), [], []
    keys = keys_of([1, 2, 3, 4])
    blocks.reserve(first, 4)
    for block, key in zip(first, keys, strict=True):
        blocks.remember(block, key)
    blocks.release(first)
    assert blocks.num_free == 4
    blocks.share(second, keys_of([1, 2, 9, 9]))
    assert (len(second), blocks.num_free) == (1, 3)
    blocks.share(second, keys[1:])
    assert (second, blocks.num_free) == ([0, 1], 2)
    blocks.release(second)
    assert blocks.reserve(first, 6)  # two were never used; what follows a prefix goes before it
    assert [blocks.remembers(key) for key in keys] == [True, False]


def test_the_least_recently_used_goes_first() -> None:
    blocks, table = BlockManager(3, block_size=1), []
    for token in range(3):
        blocks.reserve(table, 1)
        blocks.remember(table[0], keys_of([token], block_size=1)[0])
        blocks.release(table)
    blocks.share(table, keys_of([0], block_size=1))
    blocks.release(table)
    blocks.reserve(table, 2)
    assert [blocks.remembers(keys_of([token], block_size=1)[0]) for token in range(3)] == [True, False, False]


def test_what_is_forgotten_is_not_found_and_can_be_handed_out() -> None:
    blocks, held, other = BlockManager(2, block_size=1), [], []
    blocks.reserve(held, 1)
    blocks.reserve(other, 1)
    for table, token in ((held, 0), (other, 1)):
        blocks.remember(table[0], keys_of([token], block_size=1)[0])
    blocks.release(other)
    blocks.forget_all()
    blocks.share(other, keys_of([1], block_size=1))
    assert (other, blocks.num_remembered) == ([], 0)
    assert blocks.reserve(other, 1)
    blocks.release(held)
    assert blocks.reserve(other, 2)


def test_a_key_stands_for_all_tokens_up_to_it_and_their_root() -> None:
    assert keys_of([1, 2, 3, 4])[1] != keys_of([9, 2, 3, 4])[1]
    assert keys_of([1, 2], root=root_key("a"))[0] != keys_of([1, 2], root=root_key("b"))[0]
    assert root_key("a", "b") != root_key("ab", "")


def keys_of(token_ids: list[int], *, block_size: int = 2, root: bytes = b"") -> list[bytes]:
    keys = [root]
    for start in range(0, len(token_ids), block_size):
        keys.append(next_key(keys[-1], token_ids[start : start + block_size]))
    return keys[1:]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40), st.sampled_from(["release", "grow", "share", "forget"])),
        max_size=60,
    )
)
def test_every_block_is_free_or_held_and_shared_only_by_those_that_hold_the_same(
    moves: list[tuple[int, int, str]],
) -> None:
    blocks = BlockManager(10, block_size=1)
    tables: list[list[int]] = [[], [], [], []]
    contents: dict[int, int] = {}
    """Block → the number that its holder says it holds."""
    for which, number, move in moves:
        table = tables[which]
        if move == "release":
            blocks.release(table)
        elif move == "forget":
            blocks.forget_all()
        elif move == "share":
            before = len(table)
            blocks.share(table, keys_of([number % 5], block_size=1))
            assert all(contents[block] == number % 5 for block in table[before:])
        elif blocks.reserve(table, len(table) + number % 4):
            for block in table[len(table) - number % 4 :]:
                contents[block] = number % 5
                blocks.remember(block, keys_of([number % 5], block_size=1)[0])
        held = {block for table in tables for block in table}
        assert blocks.num_free == 10 - len(held)
        assert all(0 <= block < 10 for block in held)
    for table in tables:
        blocks.release(table)
    assert blocks.reserve(tables[0], 10)
    assert sorted(tables[0]) == list(range(10))
