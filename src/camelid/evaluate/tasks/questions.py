"""Questions with known answers: exact match of the model's reply.

    {"question": "What is the capital of France?", "answer": "Paris", "kind": "geography"}
    {"question": "How much is 2 + 2?", "answers": ["4", "four"]}

A reply is right if it equals an answer once both are stripped of white space, put in lower case and freed of a final
full stop. A model that came with a chat template is asked in a conversation; any other continues a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from camelid.base.errors import FormatError
from camelid.base.files import existing_file, sha256
from camelid.base.progress import progress
from camelid.evaluate.task import Measurement, Sample, Task, accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.data.sources import Record
    from camelid.evaluate.task import Metric, Subject
    from camelid.llm import Prompt

HINT = 'each line is {"question": "…", "answer": "…"}, or "answers": ["…", …], and may have a "kind"'


class Questions(Task):
    """Accuracy on questions of a JSONL file, overall and for each kind."""

    task: Literal["questions"] = "questions"
    path: Path
    """JSON lines, plain or compressed."""
    format: Literal["auto", "chat", "completion"] = "auto"
    """"auto": chat for a model that came with a chat template, completion for any other."""
    system: str | None = None
    """The system message of the conversation."""
    completion: str = "Question: {question}\nAnswer:"
    """The text that a model without chat continues; its answer ends with the line."""
    max_tokens: int = Field(default=64, ge=1)
    """Of one reply."""
    num_samples: int = Field(default=10, ge=0)
    """Right ones, and as many wrong ones, shown in the report."""

    @field_validator("completion")
    @classmethod
    def _has_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("has no {question} in it")
        return value

    def fingerprint(self) -> str:
        """The hash of the file."""
        return sha256(self.path)

    def measure(self, subject: Subject) -> Measurement:
        """Ask every question.

        Raises:
            NotFoundError: there is no such file.
            FormatError: a row is malformed, or there is none.
            ContextLengthError: a question leaves no room for an answer.
        """
        questions = read_questions(self.path)
        chat = subject.has_chat_template if self.format == "auto" else self.format == "chat"
        prompts = [self._prompt(question.text, chat) for question in questions]
        replies: list[str] = []
        with progress(self.label, len(questions), "questions") as bar:
            for reply in subject.replies(prompts, max_tokens=self.max_tokens, stop=() if chat else ("\n",)):
                replies.append(reply)
                bar.advance(1)
        right = [question.accepts(reply) for question, reply in zip(questions, replies, strict=True)]
        how = "asked in a conversation" if chat else f"asked as the completion of {self.completion!r}"
        return Measurement(
            metrics=tuple(_accuracies(questions, right)),
            num_items=len(questions),
            samples=self._samples(questions, replies, right),
            notes=(how,),
        )

    def _prompt(self, question: str, chat: bool) -> Prompt:
        if not chat:
            return self.completion.replace("{question}", question)
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, {"role": "user", "content": question}]

    def _samples(
        self, questions: Sequence[Question], replies: Sequence[str], right: Sequence[bool]
    ) -> tuple[Sample, ...]:
        samples = [
            Sample(item=q.where, prompt=q.text, output=reply, expected=" | ".join(q.answers), right=ok)
            for q, reply, ok in zip(questions, replies, right, strict=True)
        ]
        kept = [[sample for sample in samples if sample.right is ok][: self.num_samples] for ok in (True, False)]
        in_turn = chain.from_iterable(zip_longest(*kept))  # so that the first few show both
        return tuple(sample for sample in in_turn if sample is not None)


@dataclass(frozen=True)
class Question:
    """One question and what counts as an answer to it."""

    text: str
    answers: tuple[str, ...]
    kind: str | None
    where: str
    """`file:line`."""

    def accepts(self, reply: str) -> bool:
        """Whether the reply is one of the answers, both normalised."""
        return normalised(reply) in map(normalised, self.answers)


def normalised(answer: str) -> str:
    """Without white space around it and a final full stop, in lower case (case folded, for all scripts)."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file.

    Raises:
        NotFoundError: there is no such file.
        FormatError: a row is malformed, naming the line, or there is none.
    """
    from camelid.data.compression import compression_of
    from camelid.data.sources import SourceFile, read_records

    file = SourceFile(existing_file(path), "jsonl", compression_of(path))
    questions = [_question(record, f"{path}:{record.number}") for record in read_records(file)]
    if not questions:
        raise FormatError("there is no question in it", where=path, hint=HINT)
    return questions


def _question(record: Record, where: str) -> Question:
    row = record.values
    if unknown := sorted(row.keys() - {"question", "answer", "answers", "kind"}):
        raise FormatError(f"unknown field '{unknown[0]}'", where=where, hint=HINT)
    text, kind = row.get("question"), row.get("kind")
    if ("answer" in row) == ("answers" in row):
        raise FormatError("a question has either 'answer' or 'answers'", where=where, hint=HINT)
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(text, str) or not text.strip():
        raise FormatError("'question' is not a text with something in it", where=where, hint=HINT)
    if not isinstance(answers, list) or not answers:
        raise FormatError("'answers' is not a list with something in it", where=where, hint=HINT)
    if not all(isinstance(answer, str) and normalised(answer) for answer in answers):
        raise FormatError("an answer is not a text with something in it", where=where, hint=HINT)
    if kind is not None and not isinstance(kind, str):
        raise FormatError("'kind' is not a text", where=where, hint=HINT)
    return Question(text, tuple(answers), kind, where)


def _accuracies(questions: Sequence[Question], right: Sequence[bool]) -> list[Metric]:
    """Overall, then for each kind in the order in which kinds come up."""
    metrics = [accuracy(sum(right), len(right))]
    for kind in dict.fromkeys(question.kind for question in questions if question.kind is not None):
        of_kind = [ok for question, ok in zip(questions, right, strict=True) if question.kind == kind]
        metrics.append(accuracy(sum(of_kind), len(of_kind), f"accuracy: {kind}"))
    return metrics
