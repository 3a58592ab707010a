from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from corpora import assert_same, sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import ChatFormatError, FormatError, RecipeError
from camelid.data.conversation_batches import ConversationBatches
from camelid.data.conversations import Conversation
from camelid.tokenizer.chat import chat_format_for
from camelid.tokenizer.chat_chatml import ChatMLFormat
from camelid.tokenizer.chat_format import Rendered

CHAT = chat_format_for(ByteTokenizer(), template=None, name="chatml")
BASE: dict[str, Any] = {"sequence_length": 160, "batch_size": 2, "seed": 0}

turns = st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3)


def conversation(*turns: tuple[str, str], number: int = 0) -> Conversation:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(messages, [], f"talk.jsonl:{number}")


def talks(count: int) -> list[Conversation]:
    return [conversation((f"{i}" * (i % 7 + 1), f"{i}" * (i % 11 + 1)), number=i) for i in range(count)]


def without_padding(batch_sequences: list[tuple[list[int], list[int], list[bool]]]) -> list[Any]:
    return [sequence for sequence in batch_sequences if any(sequence[2])]


@settings(max_examples=50, deadline=None)
@given(many=st.lists(turns, min_size=1, max_size=20), seed=st.integers(0, 9), epoch=st.integers(0, 2))
def test_an_epoch_has_every_conversation_once_and_whole_with_the_renderers_mask(
    many: list[list[tuple[str, str]]], seed: int, epoch: int
) -> None:
    conversations = [conversation(*turns) for turns in many]
    batches = ConversationBatches(conversations, CHAT, sequence_length=300, batch_size=1, seed=seed)

    found = []
    for row in range(batches.num_rows):
        found += without_padding(sequences(batches.batch(epoch * batches.num_rows + row)))

    rendered = [CHAT.render(c.messages) for c in conversations]
    expected = Counter((tuple(r.ids[:-1]), tuple(r.ids[1:]), tuple(r.mask[1:])) for r in rendered)
    assert Counter((tuple(ids), tuple(targets), tuple(counts)) for ids, targets, counts in found) == expected


def test_the_loss_is_taken_at_the_assistants_words_and_their_end() -> None:
    batches = ConversationBatches([conversation(("Hi", "Yes"))], CHAT, **BASE)

    batch = batches.batch(0)

    learned = batch.targets_T[:160][batch.weights_T[:160] > 0].tolist()
    assert learned == [*b"Yes", 258]
    assert batch.num_target_bytes == 2 * 3, "the end token has no bytes"


def test_rows_are_well_filled() -> None:
    batches = ConversationBatches(talks(3000), CHAT, sequence_length=512, batch_size=4, seed=0)

    assert batches.report.fill > 0.98
    assert batches.report.num_tokens == sum(len(CHAT.render(c.messages).ids) - 1 for c in talks(3000))


def test_every_batch_has_the_same_shape() -> None:
    batches = ConversationBatches(talks(10), CHAT, **BASE)

    for number in range(20):
        assert batches.batch(number).ids_T.shape == (320,)


@settings(deadline=None)
@given(size=st.integers(1, 5), world=st.integers(1, 4), number=st.integers(0, 100))
def test_the_order_depends_on_neither_batch_size_nor_ranks(size: int, world: int, number: int) -> None:
    arguments = {"sequence_length": 100, "seed": 1}
    alone = ConversationBatches(talks(30), CHAT, batch_size=1, **arguments)
    together = ConversationBatches(talks(30), CHAT, batch_size=size * world, **arguments)

    parts = [together.batch(number, rank, world) for rank in range(world)]

    rows = np.concatenate([part.ids_T for part in parts]).reshape(-1, 100)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row, alone.batch(number * size * world + i).ids_T)


def test_going_on_from_any_batch_equals_never_having_stopped() -> None:
    expected = ConversationBatches(talks(50), CHAT, **BASE)
    resumed = ConversationBatches(talks(50), CHAT, **BASE)

    for number in (90, 41, 42, 3):
        assert_same(resumed.batch(number), expected.batch(number))


def test_epochs_differ_in_order() -> None:
    batches = ConversationBatches(talks(200), CHAT, sequence_length=160, batch_size=1, seed=0)

    first, second = (
        [batches.batch(e * batches.num_rows + i).ids_T.tobytes() for i in range(batches.num_rows)] for e in (0, 1)
    )

    assert first != second
    assert sorted(first) == sorted(second)


def test_epochs_are_counted() -> None:
    batches = ConversationBatches(talks(200), CHAT, **BASE)

    assert batches.epochs(batches.num_rows) == {"conversations": 2.0}, "of two rows a batch"


def test_in_order_shows_every_row_once() -> None:
    batches = ConversationBatches(talks(21), CHAT, **BASE)

    found = [sequence for batch in batches.in_order() for sequence in without_padding(sequences(batch))]

    assert len(found) == 21


def test_a_conversation_too_long_is_dropped_and_counted() -> None:
    long = conversation(("question", "long" * 50))

    batches = ConversationBatches([*talks(3), long], CHAT, **BASE, too_long="drop")

    report = batches.report
    assert (report.num_conversations, report.num_dropped, report.num_truncated) == (4, 1, 0)
    assert "1 longer than 160 tokens and dropped" in str(report)


def test_a_conversation_too_long_is_truncated_and_counted() -> None:
    long = conversation(("question", "long" * 50))
    ids = CHAT.render(long.messages).ids

    batches = ConversationBatches([long], CHAT, **BASE, too_long="truncate")

    batch = batches.batch(0)
    assert batch.ids_T[:160].tolist() == ids[:160]
    assert batch.targets_T[:160].tolist() == ids[1:161]
    assert (batches.report.num_dropped, batches.report.num_truncated) == (0, 1)
    assert "1 longer than 160 tokens and truncated" in str(batches.report)


@pytest.mark.parametrize("num_letters", [0, 1])
def test_a_conversation_that_just_fits_is_kept_whole(num_letters: int) -> None:
    shortest = len(CHAT.render(conversation(("", "")).messages).ids)

    fits = conversation(("", "a" * (161 - shortest + num_letters)))
    batches = ConversationBatches([fits], CHAT, **BASE, too_long="truncate")

    assert batches.report.num_truncated == num_letters


def test_a_conversation_without_the_assistant_is_left_out_and_counted() -> None:
    silent = Conversation([{"role": "user", "content": "Hello?"}], [], "talk.jsonl:1")
    late = conversation(("question" * 50, "answer"))

    report = ConversationBatches([*talks(2), silent, late], CHAT, **BASE, too_long="truncate").report

    assert report.num_without_target == 2
    assert "2 without a word of the assistant and dropped" in str(report)


def test_a_first_token_is_no_target_even_if_the_mask_has_it() -> None:
    class LearnsTheFirst(ChatMLFormat):
        def render(self, *arguments: Any, **options: Any) -> Rendered:
            ids = super().render(*arguments, **options).ids
            return Rendered(ids, lambda: [True] + [False] * (len(ids) - 1))

    with pytest.raises(FormatError, match="none is left to learn from"):
        ConversationBatches(talks(1), LearnsTheFirst(ByteTokenizer()), **BASE)


def test_nothing_left_to_learn_from_is_an_error() -> None:
    with pytest.raises(FormatError, match="of 0 conversations none is left"):
        ConversationBatches([], CHAT, **BASE)
    with pytest.raises(FormatError, match="1 are longer than a row") as caught:
        ConversationBatches([conversation(("q", "long" * 50))], CHAT, **BASE)

    assert caught.value.hint == "raise sequence_length"


def test_what_the_format_cannot_express_is_named_with_file_and_line() -> None:
    with_tool = Conversation([*talks(1)[0].messages, {"role": "tool", "content": "3"}], [], "talk.jsonl:12")

    with pytest.raises(ChatFormatError, match="no tools") as caught:
        ConversationBatches([*talks(2), with_tool], CHAT, **BASE)

    assert caught.value.where == "talk.jsonl:12, messages[2]"


def test_the_fingerprint_follows_data_and_settings() -> None:
    fingerprints = [ConversationBatches(talks(5), CHAT, **BASE).fingerprint]
    for change in ({"sequence_length": 170}, {"batch_size": 4}, {"seed": 1}):
        fingerprints.append(ConversationBatches(talks(5), CHAT, **(BASE | change)).fingerprint)
    fingerprints.append(ConversationBatches(talks(6), CHAT, **BASE).fingerprint)

    assert len(set(fingerprints)) == 5
    assert ConversationBatches(talks(5), CHAT, **BASE).fingerprint == fingerprints[0]


@pytest.mark.parametrize("name", ["sequence_length", "batch_size"])
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ConversationBatches(talks(1), CHAT, **(BASE | {name: 0}))

    assert caught.value.where == name


def test_pairs_never_cross_conversations() -> None:
    batches = ConversationBatches(talks(40), CHAT, **BASE)
    inside = {pair for c in talks(40) for pair in pairwise(CHAT.render(c.messages).ids)}

    for number in range(30):
        batch = batches.batch(number)
        counts = batch.weights_T > 0
        assert set(zip(batch.ids_T[counts].tolist(), batch.targets_T[counts].tolist(), strict=True)) <= inside
