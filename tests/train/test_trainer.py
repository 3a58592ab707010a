from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TinyBatches, concatenated, settings, tiny_model

from camelid.base.errors import CamelidError, TrainingError
from camelid.train.batch_loss import batch_loss
from camelid.train.metrics import read_metrics
from camelid.train.settings import OptimizerSettings, ScheduleSettings
from camelid.train.trainer import Trainer, as_written, compute_dtype, prepare_blocks

GOLDEN = Path(__file__).parent.parent / "fixtures" / "train" / "golden_losses.json"


def losses(trainer: Trainer) -> list[float]:
    return [metrics.loss for metrics in read_metrics(trainer.run_folder / "metrics.jsonl")]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_loss_falls(make_trainer, name: str) -> None:
    trainer = make_trainer(steps=40, optimizer=OptimizerSettings(name=name, learning_rate=1e-2))
    assert trainer.run().finished
    curve = losses(trainer)
    assert curve[-1] < 0.5 * curve[0]


def test_fifty_steps_give_the_golden_losses(make_trainer) -> None:
    """Tolerance: 2e-4 relative. Platforms sum in different orders, and 50 updates carry the difference on; two thread
    counts on one x86 machine differ by 1e-6."""
    trainer = make_trainer(steps=50, accumulation=2, z_loss=1e-4)
    trainer.run()
    np.testing.assert_allclose(losses(trainer), json.loads(GOLDEN.read_text())["losses"], rtol=2e-4)


@pytest.mark.parametrize("lengths", [(24, 16, 24), (8, 40)])
def test_accumulated_gradients_are_those_of_the_large_batch(make_trainer, lengths: tuple[int, ...]) -> None:
    class Uneven(TinyBatches):
        """Batches in which different numbers of tokens count."""

        def batch(self, number: int):
            batch = super().batch(number)
            batch.weights_T[: 7 * number] = 0
            return batch

    class Large(Uneven):
        def batch(self, number: int):
            return concatenated([super(Large, self).batch(2 * number + i) for i in range(2)])

    parts, whole = make_trainer(Uneven(lengths), accumulation=2), make_trainer(Large(lengths), folder="large")
    gradients = []
    for trainer in (parts, whole):
        seen = {}

        def keep(share: float, trainer: Trainer = trainer, seen: dict = seen) -> None:
            seen |= {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

        trainer.optimizer.step = keep
        gradients.append((trainer._train_step(peak=1.0).loss, seen))
    (loss, grads), (expected_loss, expected_grads) = gradients
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    difference = torch.cat([(grads[n] - expected_grads[n]).flatten() for n in grads]).norm()
    assert difference <= 1e-6 * torch.cat([g.flatten() for g in expected_grads.values()]).norm()


def test_metrics_tell_what_a_step_did(make_trainer) -> None:
    trainer = make_trainer(steps=4, accumulation=2)
    trainer.run()
    last = read_metrics(trainer.run_folder / "metrics.jsonl")[-1]
    assert (last.step, last.tokens, last.target_tokens) == (4, 2 * 64, 2 * 61)
    assert last.bits_per_byte == pytest.approx(last.loss / np.log(2) / 3)
    assert last.learning_rate == pytest.approx(1e-3)
    assert last.gradient_norm > 0
    assert last.tokens_per_second == pytest.approx(last.tokens / last.seconds)
    assert 0 < last.mfu < 2


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_batch(make_trainer) -> None:
    trainer = make_trainer(steps=12)

    def poison(metrics) -> None:
        if metrics.step == 6:
            with torch.no_grad():
                trainer.model.model.norm.weight[0] = float("nan")

    trainer._on_step = poison
    with pytest.raises(TrainingError, match="loss of step 7 is nan") as caught:
        trainer.run()
    assert "batch 6 (from sample 18)" in str(caught.value)
    assert trainer.step == 6
    assert [path.name for path in trainer.checkpoints.folder.iterdir()] == ["step-00000004"]
    assert make_trainer().step == 4


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_trainer) -> None:
    trainer = make_trainer(accumulation=2)
    weight = trainer.model.output_matrix.weight
    before = weight.detach().clone()
    trainer.model.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="gradient of step 1") as caught:
        trainer.run()
    assert "batch 0 (from sample 0), batch 1 (from sample 3)" in str(caught.value)
    assert torch.equal(weight, before)


def test_a_step_in_which_nothing_counts_is_refused(make_trainer) -> None:
    class Masked(TinyBatches):
        def batch(self, number: int):
            batch = super().batch(number)
            batch.weights_T[:] = 0
            return batch

    with pytest.raises(TrainingError, match="no token of the step counts"):
        make_trainer(Masked()).run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_stops(make_trainer, number: int) -> None:
    whole = make_trainer(folder="whole")
    whole.run()
    trainer = make_trainer()
    trainer._on_step = lambda metrics: os.kill(os.getpid(), number) if metrics.step == 6 else None
    before = signal.getsignal(number)
    result = trainer.run()
    assert (result.step, result.finished) == (6, False)
    assert result.checkpoint.name == "step-00000006"
    assert signal.getsignal(number) == before

    resumed = make_trainer()
    assert resumed.step == 6
    assert resumed.run().finished
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert losses(resumed) == losses(whole)


def test_a_finished_run_is_not_trained_further(make_trainer) -> None:
    first = make_trainer().run()
    again = make_trainer()
    result = again.run()
    assert (result.step, result.finished, result.checkpoint) == (12, True, first.checkpoint)


def test_activation_checkpointing_changes_no_bit(make_trainer) -> None:
    plain, frugal = make_trainer(), make_trainer(folder="frugal", activation_checkpointing=True)
    plain.run()
    frugal.run()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), frugal.model.parameters(), strict=True))


@pytest.mark.slow
def test_compiled_blocks_train_alike(make_trainer) -> None:
    plain, compiled = make_trainer(steps=5), make_trainer(folder="compiled", steps=5, compile=True)
    plain.run()
    compiled.run()
    np.testing.assert_allclose(losses(compiled), losses(plain), rtol=1e-5)


def test_bfloat16_products_train_fp32_weights(make_trainer) -> None:
    plain, low = make_trainer(steps=5), make_trainer(folder="low", steps=5, dtype="bfloat16")
    plain.run()
    low.run()
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses(low), losses(plain), rtol=0.02)


def test_auto_computes_in_float32_on_a_cpu() -> None:
    assert compute_dtype("auto", torch.device("cpu")) == torch.float32


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    model = tiny_model()
    frozen = model.model.layers[0].requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]
    Trainer(model, TinyBatches(), settings(steps=3, schedule=ScheduleSettings(warmup_steps=0)), tmp_path).run()
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))


def test_a_recipe_problem_says_the_next_thing_to_try(make_trainer) -> None:
    make_trainer(steps=4).run()
    with pytest.raises(CamelidError) as caught:
        make_trainer(steps=5)
    assert caught.value.hint


def test_samples_and_validation_make_a_compiled_model_compile_nothing_more(monkeypatch) -> None:
    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_block(self, backend="eager"))
    model = tiny_model()
    prepare_blocks(model, activation_checkpointing=False, compiled=True)
    batch_loss(model, TinyBatches().batch(0), torch.float32)
    compiled = dict(torch._dynamo.utils.counters["stats"])

    with as_written(), torch.no_grad():
        batch_loss(model, TinyBatches(lengths=(9, 7)).batch(0), torch.float32)

    assert dict(torch._dynamo.utils.counters["stats"]) == compiled
    assert compiled["unique_graphs"] > 0
