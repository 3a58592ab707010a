"""The trainer: one loop for everything that learns from batches of packed sequences.

    trainer = Trainer(model, batches, TrainSettings(steps=1000), Path("runs/small"))
    trainer.run()

The run is a function of (weights at the start, batches, settings): batch numbers follow from the step alone, and a
checkpoint holds everything else, so that a run that was killed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from camelid.base.errors import RecipeError, TrainingError
from camelid.train.batch_loss import batch_loss
from camelid.train.checkpointing import CheckpointFolder, Companions
from camelid.train.interrupt import catch_signals
from camelid.train.metrics import METRICS, MetricsFile, StepMetrics, bits_per_byte
from camelid.train.optimizer import Optimizer
from camelid.train.progress import StepDisplay
from camelid.train.records import RecordFile
from camelid.train.run_lock import RunLock
from camelid.train.samples import SAMPLES, Sample, Sampler
from camelid.train.schedule import learning_rate_share
from camelid.train.settings import FREE_TO_CHANGE
from camelid.train.throughput import flops_per_token, measured_peak
from camelid.train.validation import held_out_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from camelid.data.batch import Batch, BatchSource
    from camelid.model.base import LanguageModel
    from camelid.train.settings import TrainSettings
    from camelid.train.validation import ValidationSource

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """How a call of `Trainer.run` ended."""

    step: int
    """Updates made in the whole run."""
    finished: bool
    """False: a signal stopped it, and it can be taken up again."""
    checkpoint: Path
    """The last checkpoint; `checkpoint / "model"` is a Hugging Face folder."""


class Trainer:
    """Trains a model on one device.

    Making it locks the run folder, until `run` ends or nothing refers to the trainer any more, and takes up the newest
    sound checkpoint in it, if there is one.

    Args:
        model: with its weights at the start of the run, in fp32, on the device to train on.
        batches: where batch n comes from; step s takes batches s·accumulation and the following ones.
        settings: the run's settings.
        run_folder: gets `metrics.jsonl`, `samples.jsonl`, `tensorboard/` and `checkpoints/`.
        validation: held-out data; None: there is none.
        companions: what goes into each checkpoint's model folder beside the weights.
        on_step: called with each step's metrics once they are written.

    Raises:
        RecipeError: the run folder holds checkpoints of a run with other settings, data or shape, or the settings are
            impossible.
        FormatError: none of the run folder's checkpoints verifies.
        ResourceError: another trainer holds the run folder.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: BatchSource,
        settings: TrainSettings,
        run_folder: Path,
        *,
        validation: ValidationSource | None = None,
        companions: Companions | None = None,
        on_step: Callable[[StepMetrics], None] | None = None,
    ) -> None:
        if problem := settings.schedule_problem():
            raise RecipeError(problem, where="training")
        self.model = model
        self.batches = batches
        self.settings = settings
        self.run_folder = run_folder
        self.device = next(model.parameters()).device
        self.dtype = compute_dtype(settings.dtype, self.device)
        self.optimizer = Optimizer(model, settings.optimizer)
        self._validation = validation
        self._companions = companions or Companions()
        self._on_step = on_step
        self._sampler = Sampler(model, self._companions, settings) if settings.sample_every else None
        self._lock = RunLock(run_folder)
        self.checkpoints = CheckpointFolder(run_folder / CHECKPOINTS, self._identity(), settings.milestone_every)
        torch.manual_seed(settings.seed)
        try:
            self.step = self.checkpoints.resume(model, self.optimizer)
        except BaseException:
            self._lock.close()
            raise
        self._saved: int | None = self.step or None
        prepare_blocks(model, activation_checkpointing=settings.activation_checkpointing, compiled=settings.compile)

    def run(self) -> TrainResult:
        """Train to the last step, or until Ctrl-C or SIGTERM, which finish the step and save; once.

        Raises:
            TrainingError: a loss or a gradient is not finite; the update was not made and the last checkpoint stands.
            ResourceError: the disk is full; the last checkpoint stands.
        """
        settings, model = self.settings, self.model
        model.train()
        with (
            closing(self._lock),
            catch_signals() as stop,
            closing(MetricsFile(self.run_folder / METRICS, self.step)) as metrics_file,
            closing(RecordFile(self.run_folder / SAMPLES, Sample, self.step)) as samples_file,
            closing(StepDisplay(settings.steps, settings.log_every, resumed_at=self.step)) as display,
        ):
            peak = measured_peak(self.device, self.dtype)
            while self.step < settings.steps and not stop.is_set():
                metrics = self._measured(self._train_step(peak))
                metrics_file.append(metrics)
                display.show(metrics)
                if self._sampler is not None and self._is_due(settings.sample_every):
                    with as_written():
                        samples = self._sampler.write(self.step)
                    for sample in samples:
                        samples_file.append(sample)
                        display.say(f"sample {self.step}  {sample.prompt!r} → {sample.text!r}")
                if self._on_step is not None:
                    self._on_step(metrics)
                if self.step % settings.checkpoint_every == 0 and self.step < settings.steps:
                    self._save(metrics_file, samples_file)
            path = self._save(metrics_file, samples_file)
            if self.step < settings.steps:
                display.say(f"stopped at step {self.step}; the same command goes on from there")
        return TrainResult(self.step, self.step == settings.steps, path)

    def _train_step(self, peak: float) -> StepMetrics:
        """One update from `accumulation` batches, equal to one from a single batch that holds them all."""
        start = time.perf_counter()
        numbers = range(self.step * self.settings.accumulation, (self.step + 1) * self.settings.accumulation)
        batches = [self.batches.batch(number) for number in numbers]
        total_weight = float(sum(batch.weights_T.sum(dtype="float64") for batch in batches))
        if total_weight <= 0:
            raise TrainingError("no token of the step counts in the loss", where=_names(numbers, batches))
        nats = sum(self._backward(number, batch, total_weight) for number, batch in zip(numbers, batches, strict=True))
        gradient_norm = float(self.optimizer.clip())
        if not math.isfinite(gradient_norm):
            raise _not_finite("gradient", gradient_norm, self.step + 1, _names(numbers, batches))
        share = learning_rate_share(self.settings.schedule, self.step + 1, self.settings.steps)
        self.optimizer.step(share)
        self.step += 1
        seconds = time.perf_counter() - start
        tokens = sum(len(batch.ids_T) for batch in batches)
        flops = sum(len(batch.ids_T) * flops_per_token(self.model, batch.lengths) for batch in batches)
        return StepMetrics(
            step=self.step,
            loss=nats / total_weight,
            bits_per_byte=bits_per_byte(nats, sum(batch.num_target_bytes for batch in batches)),
            learning_rate=share * self.settings.optimizer.learning_rate,
            gradient_norm=gradient_norm,
            tokens=tokens,
            target_tokens=total_weight,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            mfu=flops / seconds / peak,
        )

    def _measured(self, metrics: StepMetrics) -> StepMetrics:
        """The metrics with the held-out loss, where it is due."""
        if self._validation is None or not self._is_due(self.settings.validate_every):
            return metrics
        with as_written():
            held_out = held_out_loss(self.model, self._validation, self.dtype, self.settings.validate_batches)
        return replace(metrics, validation_loss=held_out.loss, validation_bits_per_byte=held_out.bits_per_byte)

    def _is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and after the last one, happens now."""
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _backward(self, number: int, batch: Batch, total_weight: float) -> float:
        """Add a batch's share to the gradients; its cross-entropy, weighted and summed, in nats."""
        settings = self.settings
        sums = batch_loss(self.model, batch, self.dtype, z_loss=settings.z_loss, compiled=settings.compile)
        nats, objective = float(sums.cross_entropy), float(sums.objective.detach())
        if not math.isfinite(objective):
            raise _not_finite("loss", objective, self.step + 1, _names([number], [batch]))
        cast("Any", sums.objective / total_weight).backward()
        return nats

    def _save(self, *files: MetricsFile | RecordFile[Sample]) -> Path:
        """The checkpoint of the current step, written unless it stands already; what it presumes goes to disk first."""
        for file in files:
            file.sync()
        if self._saved != self.step:
            self.checkpoints.save(self.step, self.model, self.optimizer, self._companions)
            self._saved = self.step
        return self.checkpoints.path(self.step)

    def _identity(self) -> dict[str, Any]:
        """Whatever the weights at the end depend on."""
        return {
            "data": self.batches.fingerprint,
            "model": self.model.config.to_hf(),
            "settings": self.settings.model_dump(mode="json", exclude=set(FREE_TO_CHANGE)),
            "computed_in": str(self.dtype).removeprefix("torch."),
        }


def compute_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The dtype of the matrix products that a setting means on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def prepare_blocks(model: nn.Module, *, activation_checkpointing: bool, compiled: bool) -> None:
    """Change how the model's repeated blocks run, not what they compute; parameter names stay as they are."""
    for block in _blocks(model):
        if activation_checkpointing:
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()


def as_written() -> AbstractContextManager[None]:
    """Within it, compiled blocks run as Python has them: for what is done seldom, and in ever other shapes."""
    return cast("AbstractContextManager[None]", cast("Any", torch.compiler.set_stance)("force_eager"))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _names(numbers: Sequence[int], batches: Sequence[Batch]) -> str:
    return ", ".join(
        f"batch {number} (from sample {batch.first_sample})" for number, batch in zip(numbers, batches, strict=True)
    )


def _not_finite(what: str, value: float, step: int, where: str) -> TrainingError:
    return TrainingError(
        f"the {what} of step {step} is {value}; the update was not made",
        where=where,
        hint="the last checkpoint is sound; look at that data, or go on from the checkpoint with a lower learning rate",
    )
