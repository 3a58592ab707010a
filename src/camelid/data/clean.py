"""From raw text to a clean corpus: a declared pipeline of steps, and a report of what it dropped.

    output = "clean"
    sources = ["raw/**/*.jsonl.gz"]

    [[steps]]
    step = "normalise"

    [[steps]]
    step = "gopher_quality"
    min_words = 30

    [[steps]]
    step = "near_dedup"

`prepare` runs it and returns the report; `kept_documents` then reads what was kept. Steps run in the order given: put
deduplication after the filters, or a document that is dropped later hides its duplicates. A killed run goes on with the
first source file that was not done, and files added at the end of the sources are cleaned against what is there.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from itertools import groupby
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from camelid.base.files import sha256
from camelid.base.progress import progress
from camelid.base.recipe import Recipe
from camelid.data.clean_folder import kept_documents, open_folder
from camelid.data.dedup import ExactDedup, NearDedup
from camelid.data.judge import Chunk, Judge, Judgement, judge_in_order
from camelid.data.normalise import Normalise
from camelid.data.report import CleaningReport, Tally
from camelid.data.sources import ReadOptions, documents_of, empty_corpus, find_files
from camelid.data.steps import Dropped, StepRecipe, parse_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from camelid.data.clean_folder import CleanFolder
    from camelid.data.document import Document
    from camelid.data.sources import SourceFile
    from camelid.data.steps import SeenIndex

__all__ = ["CleanRecipe", "kept_documents", "prepare"]

CHUNK_BYTES = 1 << 18
SMALL_CORPUS_BYTES = 1 << 22
"""Below this starting more processes takes longer than it saves."""
VERSION = 1
"""Counted up when the same recipe comes to clean differently."""


class CleanRecipe(Recipe):
    """A corpus, the steps that clean it, and where the result goes."""

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders and globs."""
    output: Path
    """The folder for kept documents, index and report."""
    text_field: str = "text"
    """The field of JSON and parquet rows that holds the text."""
    separator: str | None = None
    """The line between two documents of a text file."""
    steps: tuple[Annotated[SerializeAsAny[StepRecipe], BeforeValidator(parse_step)], ...] = (
        Normalise(),
        ExactDedup(),
        NearDedup(),
    )
    processes: Annotated[int, Field(ge=1)] | None = None
    """None: as many as there are cores, or one for a small corpus. The result is the same."""
    num_examples: Annotated[int, Field(ge=0)] = 3
    """Dropped documents shown for each rule."""

    def fingerprint(self) -> str:
        """A hash of all that decides about a document: steps, settings, and the contents of files that steps read."""
        settings = self.model_dump(mode="json", include={"text_field", "separator", "steps", "num_examples"})
        files = [[sha256(path) for path in step.inputs()] for step in self.steps]
        return blake2b(json.dumps([VERSION, settings, files]).encode(), digest_size=16).hexdigest()


def prepare(recipe: CleanRecipe) -> CleaningReport:
    """Clean a corpus into the output folder, or finish what an earlier call began there.

    Raises:
        NotFoundError: a source or an evaluation file does not exist.
        FormatError: a source is damaged or empty; the message names file and line.
        RecipeError: an impossible setting, or the folder holds another recipe's results.
        ResourceError: the disk is full, or a process was killed for its memory.
    """
    files = find_files(recipe.sources)
    with open_folder(recipe.output) as folder:
        num_done = folder.num_done(recipe.fingerprint(), files)
        if num_done < len(files):
            _clean(recipe, files, num_done, folder)
        settings: dict[str, Any] = recipe.model_dump(mode="json", exclude={"output", "processes"})
        report = CleaningReport.of(folder.reports(), settings, recipe.num_examples)
    if report.num_documents == 0:
        raise empty_corpus(recipe.sources)
    report.write(recipe.output)
    return report


def _clean(recipe: CleanRecipe, files: Sequence[SourceFile], num_done: int, folder: CleanFolder) -> None:
    judge = Judge(recipe.steps)
    indexes = [
        (place, step.rule, step.open(folder.database, f"{step.rule}_{place}")) for place, step in judge.deduplicators()
    ]
    chunks = _chunks(files, num_done, ReadOptions(recipe.text_field, recipe.separator))
    judged = judge_in_order(chunks, recipe.steps, judge, _num_processes(recipe, files[num_done:]))
    with progress("cleaning", unit="documents") as bar:
        for number, of_file in groupby(judged, key=lambda pair: pair[0].file_number):
            tally = Tally([step.step for step in recipe.steps], recipe.num_examples)
            with folder.writing(number) as writer:
                for chunk, judgements in of_file:
                    for judgement in judgements:
                        if document := _settle(judgement, indexes, tally):
                            writer.write(document)
                    bar.advance(len(chunk.documents))
            folder.finish(number, tally.report(str(files[number].path), sha256(files[number].path)))


def _settle(judgement: Judgement, indexes: Sequence[tuple[int, str, SeenIndex]], tally: Tally) -> Document | None:
    """Look up the document's keys, as far as it got, and count what became of it; the document if it is kept."""
    document, sizes = judgement.document, judgement.sizes
    place, dropped = len(sizes) - 1, judgement.dropped
    for (index_place, rule, index), key in zip(indexes, judgement.keys, strict=False):
        if earlier := index.first_seen(key, document.id):
            place, dropped = index_place, Dropped(rule, f"repeats {earlier}")
            break
    tally.read(judgement.num_bytes)
    for step in judgement.changed:
        if step < place:
            tally.changed(step, sizes[step] - sizes[step + 1])
    if dropped:
        tally.dropped(place, dropped, document, sizes[place])
        return None
    tally.kept(sizes[-1])
    return document


def _chunks(files: Sequence[SourceFile], first: int, options: ReadOptions) -> Iterator[Chunk]:
    for number in range(first, len(files)):
        documents: list[Document] = []
        size = 0
        for document in documents_of(files[number], options):
            documents.append(document)
            size += len(document.text)
            if size >= CHUNK_BYTES:
                yield Chunk(number, tuple(documents))
                documents, size = [], 0
        yield Chunk(number, tuple(documents))


def _num_processes(recipe: CleanRecipe, files: Sequence[SourceFile]) -> int:
    if recipe.processes:
        return recipe.processes
    if sum(file.path.stat().st_size for file in files) < SMALL_CORPUS_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
