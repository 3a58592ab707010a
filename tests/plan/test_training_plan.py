from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from camelid.base.errors import ConfigError
from camelid.model.llama_config import LlamaConfig
from camelid.model.presets import PRESETS
from camelid.plan import DEVICES, Workload, plan_training, probe
from camelid.plan.devices import ASSUMED_MFU
from camelid.plan.memory import plan_memory

TINY = LlamaConfig(
    vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
LLAMA_8B = PRESETS["llama-3.1-8b"].config
LLAMA_405B = PRESETS["llama-3.1-405b"].config


def workload(**changes: object) -> Workload:
    return Workload(**{"steps": 5, "batch_size": 4, "sequence_length": 32, "device": "cpu", **changes})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that take milliseconds: what they measure is no test's business."""
    for name in ("BLOCK_SECONDS", "OTHER_SECONDS"):
        monkeypatch.setattr(probe, name, 1e-3)
    monkeypatch.setattr(probe, "MOST_BYTES", 32 << 20)


@pytest.mark.usefixtures("quick")
def test_a_plan_for_this_machine_rests_on_a_measurement() -> None:
    plan = plan_training(TINY, workload())
    assert plan.measured is not None
    assert plan.measured.same_shape
    assert plan.seconds == pytest.approx(5 * plan.measured.total)
    assert min(plan.measured.blocks, plan.measured.output_layer, plan.measured.update) > 0
    assert plan.fits
    assert json.loads(json.dumps(plan.to_json()))["tokens"] == 5 * 4 * 32


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"dtype": "bfloat16"}, {"document_length": 9.0}])
def test_every_kind_of_workload_can_be_probed(change: dict[str, object]) -> None:
    assert plan_training(replace(TINY, tie_word_embeddings=False), workload(**change)).seconds > 0


@pytest.mark.usefixtures("quick")
def test_a_giant_is_planned_with_a_stand_in_and_does_not_fit() -> None:
    plan = plan_training(LLAMA_405B, workload(sequence_length=2048))
    assert plan.measured is not None
    assert not plan.measured.same_shape
    assert not plan.fits
    assert plan.seconds_per_step > 1000
    assert "does not fit" in plan.text()
    assert "smaller model" in plan.text()


def test_a_plan_for_an_accelerator_follows_from_its_data_sheet() -> None:
    plan = plan_training(LLAMA_8B, workload(batch_size=64, sequence_length=8192, device="h100", price_per_hour=3.0))
    peak = plan.num_devices * DEVICES["h100"].bfloat16_flops * ASSUMED_MFU
    assert plan.seconds == pytest.approx(plan.flops / peak)
    assert plan.cost == pytest.approx(3.0 * plan.num_devices * plan.seconds / 3600)
    assert plan.flops_per_token == pytest.approx(6 * (8.03e9 - 128256 * 4096) + 6 * 32 * 8192 * 4096, rel=1e-3)
    assert "an assumption" in plan.text()


def test_devices_are_added_until_the_model_fits() -> None:
    wanted = workload(batch_size=64, sequence_length=4096, device="h100", activation_checkpointing=True)
    plan = plan_training(LLAMA_8B, wanted)
    assert plan.fits
    assert plan.num_devices >= 2, "8 billion parameters with their state are 128 GB"
    assert not plan_training(LLAMA_8B, replace(wanted, num_devices=plan.num_devices // 2)).fits


def test_more_devices_than_rows_are_never_planned() -> None:
    plan = plan_training(LLAMA_405B, workload(batch_size=4, device="rtx4090"))
    assert (plan.num_devices, plan.fits) == (4, False)


def test_a_tiny_model_is_not_said_to_use_an_accelerator_well() -> None:
    plan = plan_training(TINY, workload(device="h100"))
    assert plan.launch_bound
    assert plan.seconds > 10 * plan.flops / (DEVICES["h100"].bfloat16_flops * ASSUMED_MFU)
    assert "starting its operations" in plan.text()


def test_a_device_that_nobody_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        plan_training(TINY, workload(device="h1000"))


def test_checkpointing_trades_activations_for_time() -> None:
    plain, again = (
        plan_memory(LLAMA_8B, workload(activation_checkpointing=on, sequence_length=8192), torch.float32, on_cpu=True)
        for on in (False, True)
    )
    assert again.activations < plain.activations / 5
    assert again.peak < plain.peak


def test_memory_grows_with_the_batch_and_states_do_not() -> None:
    one, four = (plan_memory(TINY, workload(batch_size=n), torch.float32, on_cpu=True) for n in (1, 4))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.01)
    assert (four.weights, four.gradients, four.optimizer) == (one.weights, one.gradients, one.optimizer)


def test_muon_keeps_one_number_per_matrix_element() -> None:
    adamw, muon = (
        plan_memory(LLAMA_8B, workload(optimizer=name), torch.float32, on_cpu=True).optimizer
        for name in ("adamw", "muon")
    )
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert adamw - muon == 4 * matrices
