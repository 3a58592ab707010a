"""What cleaning dropped, by which rule, how much of it, with examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from camelid.base.files import format_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from camelid.data.document import Document
    from camelid.data.steps import Dropped

EXCERPT_CHARACTERS = 160


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Value):
    """One document that a rule dropped."""

    id: str
    detail: str
    excerpt: str


class RuleReport(_Value):
    """What one rule dropped."""

    rule: str
    num_documents: int
    num_bytes: int
    """Of the documents as they reached the step."""
    examples: list[Example]


class StepReport(_Value):
    """What one step changed and dropped."""

    step: str
    num_changed: int
    """Documents that it changed and kept."""
    num_bytes_taken_out: int
    """By changing them; below 0 where normal spelling is longer."""
    rules: list[RuleReport]


class FileReport(_Value):
    """What became of one source file."""

    path: str
    sha256: str
    num_documents: int
    num_bytes: int
    num_kept: int
    num_bytes_kept: int
    steps: list[StepReport]


class CleaningReport(_Value):
    """What became of a corpus."""

    num_documents: int
    num_bytes: int
    num_kept: int
    num_bytes_kept: int
    steps: list[StepReport]
    files: list[FileReport]
    recipe: dict[str, Any]

    @classmethod
    def of(cls, files: Sequence[FileReport], recipe: dict[str, Any], num_examples: int) -> CleaningReport:
        """The sum of the files' reports."""
        by_step = zip(*(file.steps for file in files), strict=True)
        return cls(
            num_documents=sum(file.num_documents for file in files),
            num_bytes=sum(file.num_bytes for file in files),
            num_kept=sum(file.num_kept for file in files),
            num_bytes_kept=sum(file.num_bytes_kept for file in files),
            steps=[_sum_steps(reports, num_examples) for reports in by_step],
            files=list(files),
            recipe=recipe,
        )

    def num_dropped(self, step: str, rule: str) -> int:
        """How many documents a rule dropped."""
        return sum(r.num_documents for s in self.steps if s.step == step for r in s.rules if r.rule == rule)

    def text(self) -> str:
        """The report for people."""
        return "\n".join(self._lines()) + "\n"

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.txt`."""
        write_text(folder / "report.json", self.model_dump_json(indent=2) + "\n")
        write_text(folder / "report.txt", self.text())

    def _lines(self) -> Iterable[str]:
        yield f"read  {_amount(self.num_documents, self.num_bytes)} from {_files(len(self.files))}"
        share = 100 * self.num_bytes_kept / max(1, self.num_bytes)
        yield f"kept  {_amount(self.num_kept, self.num_bytes_kept)} ({share:.1f}% of the bytes)"
        for number, step in enumerate(self.steps, start=1):
            yield ""
            yield f"{number}. {step.step}"
            if step.num_changed:
                taken = step.num_bytes_taken_out
                what = "taken out" if taken >= 0 else "added"
                yield f"   changed {step.num_changed:,} documents, {format_bytes(abs(taken))} {what}"
            if not step.rules:
                yield "   dropped nothing"
            for rule in step.rules:
                yield f"   {rule.rule}: dropped {_amount(rule.num_documents, rule.num_bytes)}"
                for example in rule.examples:
                    yield f"     {example.id}: {example.detail}"
                    yield f"       {example.excerpt!r}"


class Tally:
    """The report of one source file in the making."""

    def __init__(self, steps: Sequence[str], num_examples: int) -> None:
        self.num_examples = num_examples
        self.num_documents = self.num_bytes = self.num_kept = self.num_bytes_kept = 0
        self._steps = steps
        self._changed = [0] * len(steps)
        self._taken_out = [0] * len(steps)
        self._rules: list[dict[str, RuleReport]] = [{} for _ in steps]

    def read(self, num_bytes: int) -> None:
        """Count a document of the source."""
        self.num_documents += 1
        self.num_bytes += num_bytes

    def changed(self, step: int, taken_out: int) -> None:
        """Count a change that made a document shorter by so many bytes."""
        self._changed[step] += 1
        self._taken_out[step] += taken_out

    def kept(self, num_bytes: int) -> None:
        """Count a document that passed every step."""
        self.num_kept += 1
        self.num_bytes_kept += num_bytes

    def dropped(self, step: int, dropped: Dropped, document: Document, num_bytes: int) -> None:
        """Count a document that a step dropped; its text may be cut to the length of an excerpt."""
        so_far = self._rules[step].get(dropped.rule)
        examples = so_far.examples if so_far else []
        if len(examples) < self.num_examples:
            excerpt = document.text[:EXCERPT_CHARACTERS]
            examples = [*examples, Example(id=document.id, detail=dropped.detail, excerpt=excerpt)]
        self._rules[step][dropped.rule] = RuleReport(
            rule=dropped.rule,
            num_documents=1 + (so_far.num_documents if so_far else 0),
            num_bytes=num_bytes + (so_far.num_bytes if so_far else 0),
            examples=examples,
        )

    def report(self, path: str, sha256: str) -> FileReport:
        """The finished report."""
        steps = [
            StepReport(
                step=name,
                num_changed=self._changed[number],
                num_bytes_taken_out=self._taken_out[number],
                rules=[rules[rule] for rule in sorted(rules)],
            )
            for number, (name, rules) in enumerate(zip(self._steps, self._rules, strict=True))
        ]
        return FileReport(
            path=path,
            sha256=sha256,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            num_kept=self.num_kept,
            num_bytes_kept=self.num_bytes_kept,
            steps=steps,
        )


def _sum_steps(reports: Sequence[StepReport], num_examples: int) -> StepReport:
    rules = sorted({rule.rule for report in reports for rule in report.rules})
    return StepReport(
        step=reports[0].step,
        num_changed=sum(report.num_changed for report in reports),
        num_bytes_taken_out=sum(report.num_bytes_taken_out for report in reports),
        rules=[_sum_rules([r for s in reports for r in s.rules if r.rule == rule], num_examples) for rule in rules],
    )


def _sum_rules(reports: Sequence[RuleReport], num_examples: int) -> RuleReport:
    return RuleReport(
        rule=reports[0].rule,
        num_documents=sum(report.num_documents for report in reports),
        num_bytes=sum(report.num_bytes for report in reports),
        examples=[example for report in reports for example in report.examples][:num_examples],
    )


def _amount(num_documents: int, num_bytes: int) -> str:
    return f"{num_documents:,} {'document' if num_documents == 1 else 'documents'}, {format_bytes(num_bytes)}"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
