"""Evaluation of one model on the tasks of a recipe.

    model = "runs/pretrain/checkpoints/step-00000200/model"

    [[tasks]]
    task = "bits_per_byte"
    shards = "runs/shards"

A task's result is kept as soon as it is there, with a hash of all it depends on: a second call measures only what is
missing or has changed.
"""

from __future__ import annotations

import json
import sys
import time
from hashlib import sha256 as hash_of
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from camelid.base.files import sha256
from camelid.base.progress import progress
from camelid.base.recipe import Recipe
from camelid.evaluate.report import RESULTS, EvaluationReport, ModelRecord, TaskResult, read_report
from camelid.evaluate.task import Task, parse_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from camelid.evaluate.subject import ModelSubject
    from camelid.llm import LLM

VERSION = 1
"""Counted up when the same recipe comes to measure differently."""


class Sampling(Recipe):
    """How replies are chosen, in the names of `SamplingParams`; greedy unless set."""

    temperature: float = Field(default=0.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)


class EvaluateRecipe(Recipe):
    """A model and the tasks that it is measured on."""

    model: str
    """A folder, a file, a catalogue name or a hub id that has been pulled."""
    tasks: Annotated[
        tuple[Annotated[SerializeAsAny[Task], BeforeValidator(parse_task)], ...],
        Field(min_length=1),
    ]
    sampling: Sampling = Sampling()
    seed: int = Field(default=0, ge=0)
    """Of replies that are sampled."""
    device: str = "auto"
    dtype: str | None = None
    """What the model computes in; None: what suits the device."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [task.label for task in self.tasks]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two tasks are called '{twice[0]}': give each a name of its own")
        return self


def evaluate(recipe: EvaluateRecipe, output: Path) -> EvaluationReport:
    """Measure a model and write `results.json` and `report.html`; finished results of the same work are taken over.

    Raises:
        NotFoundError: there is no such model, or a task's file is missing.
        TokenizerError: the model has no tokenizer, or another one than the task's shards.
        FormatError: a file is damaged (file and line are named), or the folder's results are not readable.
    """
    from camelid import __version__
    from camelid.checkpoint.catalogue import resolve

    found = read_report(output)
    path = resolve(recipe.model)
    files = model_files(path)
    keys = [_key(recipe, task, files) for task in recipe.tasks]
    finished = {result.key: result for result in found.results} if found else {}
    missing = [(task, key) for task, key in zip(recipe.tasks, keys, strict=True) if key not in finished]
    if found and not missing:
        _say(f"nothing has changed since these results were measured: {output / RESULTS}")
        subject, dtype = None, found.model.dtype
    else:
        subject = _subject(recipe)
        dtype = str(next(subject.llm.model.parameters()).dtype).removeprefix("torch.")
    model = ModelRecord(source=recipe.model, dtype=dtype, files=files, lineage=_lineage(path))

    def report() -> EvaluationReport:
        """Of what is finished, in the recipe's order."""
        there = [(task, finished[key]) for task, key in zip(recipe.tasks, keys, strict=True) if key in finished]
        results = tuple(result.model_copy(update={"name": task.label}) for task, result in there)
        return EvaluationReport(
            camelid=__version__, model=model, recipe=recipe.model_dump(mode="json"), results=results
        )

    for task, key in missing:
        assert subject is not None
        finished[key] = _measure(task, key, subject)
        _say(finished[key].text())
        report().write(output)
    if (final := report()) != found:
        final.write(output)
    return final


def model_files(path: Path) -> dict[str, str]:
    """The SHA-256 of a model's files, by name: of the file itself, or of all in its folder but hidden ones."""
    paths = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    paths = [p for p in paths if not p.name.startswith(".")]
    hashes = {}
    with progress(f"hashing {path.name}", sum(p.stat().st_size for p in paths)) as bar:
        for p in paths:
            hashes[p.name] = sha256(p)
            bar.advance(p.stat().st_size)
    return hashes


def _measure(task: Task, key: str, subject: ModelSubject) -> TaskResult:
    started = time.monotonic()
    measurement = task.measure(subject)
    return TaskResult(
        name=task.label,
        settings=task.model_dump(mode="json"),
        measurement=measurement,
        seconds=time.monotonic() - started,
        key=key,
    )


def _subject(recipe: EvaluateRecipe) -> ModelSubject:
    from camelid.evaluate.subject import ModelSubject
    from camelid.llm import load

    llm: LLM = load(recipe.model, device=recipe.device, dtype=recipe.dtype)
    return ModelSubject(llm, {**recipe.sampling.model_dump(), "seed": recipe.seed})


def _key(recipe: EvaluateRecipe, task: Task, files: Mapping[str, str]) -> str:
    settings = task.model_dump(mode="json", exclude={"name"})
    chosen = [recipe.sampling.model_dump(), recipe.seed, recipe.dtype]
    depends_on = json.dumps([VERSION, settings, task.fingerprint(), files, chosen], sort_keys=True)
    return hash_of(depends_on.encode()).hexdigest()


def _lineage(path: Path) -> dict[str, Any] | None:
    from camelid.checkpoint.lineage import LINEAGE, read_lineage

    if not (path / LINEAGE).is_file():
        return None
    lineage = read_lineage(path)
    return {"camelid": lineage.camelid, **lineage.facts}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
