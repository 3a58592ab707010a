"""Questions: an oracle is right, a guesser at chance, and a malformed row is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import ChatFormatError, FormatError, NotFoundError, RecipeError
from camelid.base.recipe import validated
from camelid.evaluate.subject import ModelSubject
from camelid.evaluate.task import Subject, accuracy
from camelid.evaluate.tasks.questions import Questions, normalised, read_questions
from camelid.llm import LLM, Prompt
from camelid.model.llama import Llama
from camelid.tokenizer import Tokenizer


class Answerer(Subject):
    """Replies by a function of the question; notes what it was given."""

    tokenizer = ByteTokenizer()
    context_length = 100

    def __init__(self, answer: Callable[[str], str], *, chat: bool = True) -> None:
        self.answer = answer
        self.chat = chat
        self.prompts: list[Prompt] = []
        self.stop: Sequence[str] = ()

    @property
    def has_chat_template(self) -> bool:
        return self.chat

    def replies(self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        self.prompts, self.stop = list(prompts), stop
        for prompt in prompts:
            yield self.answer(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def yes_or_no(tmp_path: Path) -> Path:
    rows = [
        {"question": f"{i}?", "answer": "yes" if i % 2 else "no", "kind": "small" if i < 300 else "large"}
        for i in range(1000)
    ]
    return written(tmp_path / "questions.jsonl", *rows)


def test_an_oracle_is_always_right(yes_or_no: Path) -> None:
    measured = Questions(path=yes_or_no).measure(Answerer(lambda q: " Yes." if int(q[:-1]) % 2 else "NO"))
    assert [(m.name, m.value, m.num_items) for m in measured.metrics] == [
        ("accuracy", 1.0, 1000),
        ("accuracy: small", 1.0, 300),
        ("accuracy: large", 1.0, 700),
    ]


def test_a_guesser_is_at_chance_within_the_standard_error(yes_or_no: Path) -> None:
    generator = random.Random(0)
    measured = Questions(path=yes_or_no).measure(Answerer(lambda _: generator.choice(["yes", "no"])))
    for metric in measured.metrics:
        assert metric.standard_error == pytest.approx((metric.value * (1 - metric.value) / metric.num_items) ** 0.5)
        assert abs(metric.value - 0.5) < 3 * metric.standard_error


def test_right_and_wrong_answers_are_shown(yes_or_no: Path) -> None:
    samples = Questions(path=yes_or_no, num_samples=2).measure(Answerer(lambda _: "yes")).samples
    assert [(s.item.rpartition(":")[2], s.output, s.expected, s.right) for s in samples] == [
        ("2", "yes", "yes", True),
        ("1", "yes", "no", False),
        ("4", "yes", "yes", True),
        ("3", "yes", "no", False),
    ]


def test_any_of_several_answers_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", {"question": "2 + 2", "answers": ["4", "Four"]})
    for reply, right in (("4", 1), (" four.\n", 1), ("FOUR", 1), ("44", 0), ("it is 4", 0), ("", 0)):
        assert Questions(path=path).measure(Answerer(lambda _, reply=reply: reply)).metrics[0].value == right


@given(st.text())
def test_white_space_case_and_a_final_full_stop_do_not_matter(answer: str) -> None:
    known = normalised(answer)
    for reply in (f" {answer}\n", answer.casefold(), f"{known}.", f"{known} . "):
        assert normalised(reply) == known


def test_a_chat_model_is_asked_in_a_conversation_and_another_continues_a_text(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", {"question": "Why {x}?", "answer": "so"})
    chat = Answerer(lambda _: "so")
    measured = Questions(path=path, system="Be short.").measure(chat)
    assert chat.prompts == [[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why {x}?"}]]
    assert measured.notes == ("asked in a conversation",)
    base = Answerer(lambda _: "so", chat=False)
    measured = Questions(path=path, completion="Q: {question}\nA:").measure(base)
    assert (base.prompts, list(base.stop)) == (["Q: Why {x}?\nA:"], ["\n"])
    assert "completion of 'Q: {question}" in measured.notes[0]
    forced = Answerer(lambda _: "so")
    Questions(path=path, format="completion").measure(forced)
    assert forced.prompts == ["Question: Why {x}?\nAnswer:"]


def test_a_real_model_answers_in_batches_what_it_answers_alone(tiny_llm: LLM, tmp_path: Path) -> None:
    rows = [{"question": f"number {i}?", "answer": "x"} for i in range(70)]
    path = written(tmp_path / "q.jsonl", *rows)
    samples = Questions(path=path, max_tokens=5, num_samples=70).measure(ModelSubject(tiny_llm)).samples
    for row, sample in zip(rows[:3] + rows[-3:], samples[:3] + samples[-3:], strict=True):
        prompt = [{"role": "user", "content": row["question"]}]
        assert sample.output == tiny_llm.generate(prompt, max_tokens=5).text


def test_sampling_settings_reach_the_model(tiny_llm: LLM) -> None:
    hot = ModelSubject(tiny_llm, {"temperature": 2.0, "seed": 3})
    greedy = ModelSubject(tiny_llm)
    prompts = ["one", "two"]
    assert list(hot.replies(prompts, max_tokens=12)) == list(hot.replies(prompts, max_tokens=12))
    assert list(hot.replies(prompts, max_tokens=12)) != list(greedy.replies(prompts, max_tokens=12))


def test_asking_a_base_model_in_chat_is_an_error(model: Llama, tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", {"question": "Why?", "answer": "so"})

    class Plain(ByteTokenizer):
        special = type(ByteTokenizer.special)(ids={"<|endoftext|>": 256}, bos=256, eos=256)

    with pytest.raises(ChatFormatError):
        Questions(path=path, format="chat").measure(ModelSubject(LLM(model, Plain())))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "a?", "answer": "b"', "malformed row"),
        ('["a?", "b"]', "not an object"),
        ('{"question": "a?"}', "either 'answer' or 'answers'"),
        ('{"question": "a?", "answer": "b", "answers": ["b"]}', "either 'answer' or 'answers'"),
        ('{"answer": "b"}', "'question' is not a text"),
        ('{"question": " ", "answer": "b"}', "'question' is not a text"),
        ('{"question": "a?", "answer": 4}', "an answer is not a text"),
        ('{"question": "a?", "answer": "."}', "an answer is not a text"),
        ('{"question": "a?", "answers": []}', "'answers' is not a list"),
        ('{"question": "a?", "answers": "b"}', "'answers' is not a list"),
        ('{"question": "a?", "answer": "b", "kind": 1}', "'kind' is not a text"),
        ('{"question": "a?", "answer": "b", "type": "x"}', "unknown field 'type'"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "a?", "answer": "b"}\n\n' + line + "\n")
    with pytest.raises(FormatError, match=says) as raised:
        read_questions(path)
    assert raised.value.where == f"{path}:3"


def test_a_missing_or_empty_file_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_questions(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(FormatError, match="no question"):
        read_questions(tmp_path / "empty.jsonl")


def test_a_completion_without_the_question_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has no \{question\} in it"):
        validated(Questions, {"task": "questions", "path": "q.jsonl", "completion": "Answer:"}, "test")


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_an_accuracy_is_wilsons(right: int, items: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert accuracy(right, items).interval == pytest.approx((low, high), abs=1e-4)


def test_the_tokenizer_fixture_is_a_base_models(tokenizer: Tokenizer, model: Llama) -> None:
    """Control tokens of a chat format in the vocabulary do not make a model one that was taught to chat."""
    assert not ModelSubject(LLM(model, tokenizer)).has_chat_template
