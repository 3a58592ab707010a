"""Documents through the steps of a pipeline, in this process or in several; the answers come in the documents' order.

All that a document's own text decides is computed where there is a free core: filters, and the keys of deduplicators.
Only the look-up of keys is left to the one process that holds the index, so the result does not depend on how many
processes there are.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camelid.base.errors import ResourceError
from camelid.data.report import EXCERPT_CHARACTERS
from camelid.data.steps import Deduplicator, Dropped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from camelid.data.document import Document
    from camelid.data.steps import StepRecipe

CHUNKS_AHEAD = 2
"""Chunks handed out beyond one per process, so that none of them waits."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some documents of one source file, in order; the last chunk of a file may be empty."""

    file_number: int
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one document before its keys are looked up."""

    document: Document
    """As it left the last step; of a dropped one only the beginning."""
    num_bytes: int
    """As it was read."""
    sizes: tuple[int, ...]
    """Bytes of the text as it reached each step, and as it left the last one that kept it."""
    keys: tuple[bytes, ...]
    """One for each deduplicator that it reached."""
    dropped: Dropped | None
    """Why a filter dropped it; that filter is step `len(sizes) - 1`."""
    changed: tuple[int, ...]
    """The steps that changed it."""


class Judge:
    """The steps of a pipeline, built."""

    def __init__(self, recipes: Sequence[StepRecipe]) -> None:
        self.steps = [recipe.build() for recipe in recipes]

    def deduplicators(self) -> list[tuple[int, Deduplicator]]:
        """The steps that need the index, with their places."""
        return [(place, step) for place, step in enumerate(self.steps) if isinstance(step, Deduplicator)]

    def judge(self, document: Document) -> Judgement:
        """Take one document through the steps, as far as it gets."""
        num_bytes = document.num_bytes
        sizes = [num_bytes]
        keys: list[bytes] = []
        changed: list[int] = []
        for place, step in enumerate(self.steps):
            if isinstance(step, Deduplicator):
                keys.append(step.key(document.text))
                sizes.append(sizes[-1])
                continue
            result = step(document)
            if isinstance(result, Dropped):
                excerpt = document.with_text(document.text[:EXCERPT_CHARACTERS])
                return Judgement(excerpt, num_bytes, tuple(sizes), tuple(keys), result, tuple(changed))
            if result is not document:
                changed.append(place)
            sizes.append(sizes[-1] if result is document else result.num_bytes)
            document = result
        return Judgement(document, num_bytes, tuple(sizes), tuple(keys), None, tuple(changed))

    def judge_chunk(self, chunk: Chunk) -> list[Judgement]:
        """Take several documents through the steps."""
        return [self.judge(document) for document in chunk.documents]


def judge_in_order(
    chunks: Iterable[Chunk], recipes: Sequence[StepRecipe], judge: Judge, processes: int
) -> Iterator[tuple[Chunk, list[Judgement]]]:
    """Each chunk with its judgements, in order, with a bounded number of chunks in memory.

    Args:
        chunks: read as far as needed.
        recipes: from which each process builds its own judge.
        judge: the judge of this process, used where it is the only one.
        processes: how many processes judge; 1 is this one.

    Raises:
        ResourceError: a process died.
    """
    if processes == 1:
        for chunk in chunks:
            yield chunk, judge.judge_chunk(chunk)
        return
    # A fork would inherit the locks of threads that other libraries have started.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(tuple(recipes),))
    waiting: deque[tuple[Chunk, Future[list[Judgement]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_judge_chunk, chunk)))
            if len(waiting) >= processes + CHUNKS_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a cleaning process died", hint="most often memory ran out: set a smaller number of processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_judge: Judge
"""The judge of a process that `judge_in_order` started; such a process has no other way to keep one between chunks."""


def _start(recipes: Sequence[StepRecipe]) -> None:
    global _judge
    _judge = Judge(recipes)


def _judge_chunk(chunk: Chunk) -> list[Judgement]:
    return _judge.judge_chunk(chunk)
