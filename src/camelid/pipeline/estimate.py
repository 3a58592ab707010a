"""What a stage will take, as far as it can be told without doing it."""

from __future__ import annotations

import time
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from camelid.data.sources import SourceFile
    from camelid.model.config import ModelConfig
    from camelid.plan.training import TrainingPlan

T = TypeVar("T")

PROBE_CHARACTERS = 200_000
"""Of the input that rates are measured on: a fraction of a second of work, and more than a cache's warming up."""
PROBE_BYTES = 1 << 20
"""Of a compressed file that its ratio is measured on."""
GZIP = 31
"""zlib's code for gzip's header and largest window."""
UNKNOWN_MODEL = "the shape of its model is not known yet"


@dataclass(frozen=True)
class Estimate:
    """What one stage will take; None: not known, or it takes none."""

    seconds: float | None = None
    tokens: float | None = None
    """That it writes, trains on, or reads."""
    parameters: int | None = None
    flops: float | None = None
    memory: float | None = None
    """Bytes at once."""
    note: str = ""
    """What the figures leave out, or why there are none."""
    config: ModelConfig | None = None
    """Of the model that it makes."""
    held_out: float = 0.0
    """Tokens of those that it writes that nothing is trained on."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of the stages before."""

    by_key: Mapping[str, Estimate] = field(default_factory=dict)
    """Key of a stage that is not done → what is expected of it."""

    def of(self, setting: object) -> Estimate | None:
        """What is expected of the stage that a setting refers to; None if it refers to none, or to a finished one."""
        text = str(setting)
        return next((estimate for key, estimate in self.by_key.items() if key in text), None)

    def config(self, model: object) -> ModelConfig | None:
        """The config of a model that a setting names, whether it is there or still to be trained; None: not known.

        Raises:
            CamelidError: there is no such model, or it cannot be opened.
        """
        from camelid.checkpoint.catalogue import resolve
        from camelid.checkpoint.load import described_tensors, open_checkpoint

        if (expected := self.of(model)) is not None:
            return expected.config
        with closing(open_checkpoint(resolve(str(model)))) as checkpoint:
            return described_tensors(checkpoint)[0]

    def tokens(self, shards: Path, *, held_out: bool) -> float:
        """The tokens of a split of shards, there or still to be written."""
        from camelid.data.manifest import read_manifest

        if (expected := self.of(shards)) is not None:
            return expected.held_out if held_out else (expected.tokens or 0.0) - expected.held_out
        manifest = read_manifest(shards)
        return float(sum(shard.num_tokens for shard in (manifest.validation if held_out else manifest.train)))


def of_plan(plan: TrainingPlan, config: ModelConfig) -> Estimate:
    """The plan of a training run as an estimate."""
    return Estimate(
        seconds=plan.seconds,
        tokens=plan.tokens,
        parameters=plan.parameters,
        flops=plan.flops,
        memory=plan.memory.peak,
        note="" if plan.fits else "does not fit into memory",
        config=config,
    )


def probe(texts: Iterable[str]) -> list[str]:
    """The beginning of a corpus, about `PROBE_CHARACTERS` long."""
    sample: list[str] = []
    length = 0
    for text in texts:
        sample.append(text[: PROBE_CHARACTERS - length])
        length += len(sample[-1])
        if length >= PROBE_CHARACTERS:
            break
    return sample


def corpus_bytes(sources: Sequence[str]) -> float:
    """The bytes of a corpus as it is read; what is compressed is taken to be all like its beginning.

    Raises:
        NotFoundError: a source matches no file that camelid reads.
    """
    from camelid.data.sources import find_files

    return sum(_decompressed_bytes(file) for file in find_files(sources))


def _decompressed_bytes(file: SourceFile) -> float:
    import zstandard

    size = file.path.stat().st_size
    if file.compression is None:
        return size
    with file.path.open("rb") as raw:
        head = raw.read(PROBE_BYTES)
    frame = zlib.decompressobj(GZIP) if file.compression == "gz" else zstandard.ZstdDecompressor().decompressobj()
    text = frame.decompress(head)
    return size * len(text) / max(1, len(head) - len(frame.unused_data))


def num_bytes_of(texts: Sequence[str]) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for text in texts)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """How many seconds a call takes, and what it returns."""
    started = time.perf_counter()
    returned = work()
    return time.perf_counter() - started, returned
