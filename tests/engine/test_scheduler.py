"""Who runs next: budgets are kept, order is arrival, and everybody finishes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.engine.block_manager import BlockManager
from camelid.engine.params import SamplingParams
from camelid.engine.scheduler import PRIORITY_TURNS, Scheduler
from camelid.engine.sequence import Chunk, Sequence
from camelid.model.image_memory import ImageMemory


class AnyImage:
    digest = b"any"


def new_scheduler(
    *, num_blocks: int = 100, block_size: int = 4, max_batch_tokens: int = 16, max_sequences: int = 8
) -> Scheduler:
    blocks = BlockManager(num_blocks, block_size)
    return Scheduler(blocks, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences)


def new_sequence(
    request_id: int, num_prompt: int, num_new: int = 4, *, priority: int = 0, owner: str = "", token: int | None = None
) -> Sequence:
    return Sequence(
        request_id,
        [request_id if token is None else token] * num_prompt,
        SamplingParams(),
        seed=0,
        stop_ids=frozenset(),
        max_length=num_prompt + num_new,
        priority=priority,
        owner=owner,
    )


def summary(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.request_id, chunk.start, chunk.length) for chunk in chunks]


def run(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    """What the engine does with a step, each sampled token being 0."""
    for chunk in chunks:
        is_last = chunk.is_last
        scheduler.note_computed(chunk.sequence, chunk.length)
        if is_last:
            chunk.sequence.token_ids.append(0)
            if len(chunk.sequence) == chunk.sequence.max_length:
                scheduler.remove(chunk.sequence)


def test_the_token_budget_is_filled_in_order_of_arrival() -> None:
    scheduler = new_scheduler(max_batch_tokens=16)
    for request_id, num_prompt in enumerate((6, 20, 3)):
        scheduler.add(new_sequence(request_id, num_prompt))
    steps = []
    for _ in range(3):
        chunks = scheduler.schedule()
        steps.append(summary(chunks))
        run(scheduler, chunks)
    assert steps == [[(0, 0, 6), (1, 0, 10)], [(0, 6, 1), (1, 10, 10), (2, 0, 3)], [(0, 7, 1), (1, 20, 1), (2, 3, 1)]]


def test_no_more_images_are_held_than_allowed() -> None:
    scheduler = Scheduler(BlockManager(100, 4), max_batch_tokens=16, max_sequences=8, max_images=3)
    for request_id, num_images in enumerate((0, 2, 0, 2, 1)):
        sequence = new_sequence(request_id, 2)
        sequence.images = (AnyImage(),) * num_images
        scheduler.add(sequence)
    steps = []
    while chunks := scheduler.schedule():
        steps.append({chunk.sequence.request_id for chunk in chunks})
        run(scheduler, chunks)
    assert steps[0] == {0, 1, 2}  # those behind wait in order, though the last one's image would fit
    assert steps[-1] == {3, 4}


def test_a_preempted_sequence_forgets_its_images() -> None:
    scheduler = Scheduler(BlockManager(100, 4), max_batch_tokens=16, max_sequences=8, max_images=1)
    sequence = new_sequence(0, 2)
    sequence.images = (AnyImage(),)
    scheduler.add(sequence)
    scheduler.schedule()
    sequence.memory = ImageMemory((), (), (0,), (1,))
    scheduler.preempt_all()
    assert sequence.memory is None


def test_no_more_sequences_run_than_allowed() -> None:
    scheduler = new_scheduler(max_sequences=2)
    for request_id in range(3):
        scheduler.add(new_sequence(request_id, 2))
    assert summary(scheduler.schedule()) == [(0, 0, 2), (1, 0, 2)]


def test_when_blocks_run_out_the_latest_arrival_is_computed_again_later() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4)
    first, second = new_sequence(0, 7, num_new=5), new_sequence(1, 4, num_new=4)
    scheduler.add(first)
    scheduler.add(second)
    run(scheduler, scheduler.schedule())
    assert [len(sequence.block_table) for sequence in (first, second)] == [2, 1]
    run(scheduler, scheduler.schedule())  # the second takes the last free block
    chunks = scheduler.schedule()
    assert summary(chunks) == [(0, 8, 1)]
    assert scheduler.num_preemptions == 1
    assert (second.block_table, second.num_computed, len(second)) == ([], 0, 6)
    while first in scheduler.running:
        run(scheduler, chunks)
        chunks = scheduler.schedule()
    assert summary(chunks) == [(1, 4, 2)]  # its full block has stayed in the cache


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = new_scheduler(max_batch_tokens=6, block_size=4)
    for request_id in range(3):
        scheduler.add(new_sequence(request_id, 10, token=7))
    steps = []
    for _ in range(3):
        chunks = scheduler.schedule()
        steps.append(summary(chunks))
        run(scheduler, chunks)
    assert steps == [[(0, 0, 6)], [(0, 6, 4)], [(0, 10, 1), (1, 8, 2), (2, 8, 2)]]
    first, second, third = scheduler.running
    assert first.block_table[:2] == second.block_table[:2] == third.block_table[:2]
    assert len({sequence.block_table[2] for sequence in (first, second, third)}) == 3


def test_who_waits_for_a_prefix_computes_it_if_the_other_gives_up() -> None:
    scheduler = new_scheduler(max_batch_tokens=2, block_size=4)
    first, second = (new_sequence(request_id, 6, token=7) for request_id in range(2))
    scheduler.add(first)
    scheduler.add(second)
    run(scheduler, scheduler.schedule())
    scheduler.remove(first)
    assert summary(scheduler.schedule()) == [(1, 0, 2)]


def test_priority_goes_first_and_takes_what_it_needs() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4, max_sequences=2)
    for request_id in range(3):
        scheduler.add(new_sequence(request_id, 4))
    assert summary(scheduler.schedule()) == [(0, 0, 4), (1, 0, 4)]
    scheduler.add(new_sequence(3, 12, priority=1))
    assert summary(scheduler.schedule()) == [(3, 0, 12), (0, 0, 4)]
    assert [sequence.request_id for sequence in scheduler.waiting] == [1, 2]


def test_priority_overtakes_a_bounded_number_of_turns() -> None:
    scheduler = new_scheduler(max_sequences=1)
    scheduler.add(new_sequence(0, 1, priority=0))
    for request_id in range(1, 200):
        scheduler.add(new_sequence(request_id, 1, priority=1))
    order = [sequence.request_id for sequence in scheduler.waiting]
    assert order.index(0) == PRIORITY_TURNS - 1


def test_owners_take_turns() -> None:
    scheduler = new_scheduler(max_sequences=1)
    for request_id in range(5):
        scheduler.add(new_sequence(request_id, 2, num_new=1, owner="many"))
    run(scheduler, scheduler.schedule())
    for request_id in (10, 11):
        scheduler.add(new_sequence(request_id, 2, num_new=1, owner="few"))
    order = []
    while chunks := scheduler.schedule():
        order.append(chunks[0].sequence.request_id)
        run(scheduler, chunks)
    assert order == [10, 1, 11, 2, 3, 4]


def test_a_newcomer_leaves_room_for_those_that_run_to_grow() -> None:
    scheduler = new_scheduler(num_blocks=4, block_size=4)
    scheduler.add(new_sequence(0, 8))
    scheduler.add(new_sequence(1, 8))
    assert summary(scheduler.schedule()) == [(0, 0, 8)]


@settings(deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 30),
            st.integers(1, 10),
            st.integers(0, 5),
            st.sampled_from([0, 0, 1, -1]),
            st.sampled_from(["a", "b"]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(14, 20),
    max_batch_tokens=st.integers(1, 40),
    max_sequences=st.integers(1, 6),
)
def test_budgets_hold_and_the_least_rank_always_advances(
    requests: list[tuple[int, int, int, int, str, int]], num_blocks: int, max_batch_tokens: int, max_sequences: int
) -> None:
    scheduler = new_scheduler(
        num_blocks=num_blocks, block_size=3, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences
    )
    arrivals = [
        (new_sequence(request_id, num_prompt, num_new, priority=priority, owner=owner, token=token), wait)
        for request_id, (num_prompt, num_new, wait, priority, owner, token) in enumerate(requests)
    ]
    while arrivals or scheduler.running or scheduler.waiting:
        while arrivals and (arrivals[0][1] <= 0 or not (scheduler.running or scheduler.waiting)):
            scheduler.add(arrivals.pop(0)[0])
        if arrivals:
            arrivals[0] = (arrivals[0][0], arrivals[0][1] - 1)
        unfinished = [*scheduler.running, *scheduler.waiting]
        chunks = scheduler.schedule()
        assert 1 <= sum(chunk.length for chunk in chunks) <= max_batch_tokens
        assert len(scheduler.running) <= max_sequences
        assert chunks[0].sequence is min(unfinished, key=lambda sequence: sequence.rank)
        for chunk in chunks:
            assert chunk.start == chunk.sequence.num_computed
            shared_by_others = {
                b for other in scheduler.running if other is not chunk.sequence for b in other.block_table
            }
            written = chunk.sequence.block_table[chunk.start // 3 : (chunk.start + chunk.length - 1) // 3 + 1]
            assert not shared_by_others & set(written)
            assert len(chunk.sequence.block_table) * 3 >= chunk.start + chunk.length
        run(scheduler, chunks)
    assert scheduler.blocks.num_free == num_blocks
