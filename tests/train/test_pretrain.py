from __future__ import annotations

import re
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny_run import VOCAB_SIZE, TinyBatches, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from camelid import kernels
from camelid.base.errors import CamelidError, ConfigError, NotFoundError, RecipeError
from camelid.base.recipe import load_recipe
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.model.attention import AttentionContext
from camelid.train.losses import chunked_cross_entropy
from camelid.train.metrics import StepMetrics
from camelid.train.pretrain import PretrainRecipe, build_model, pretrain
from camelid.train.report import Curve, draw, render, thin
from camelid.train.run_folder import TrainingData
from camelid.train.throughput import flops_per_token

TINY = [
    "data.shards=unused",
    "data.sequence_length=64",
    "training.steps=6",
    "training.schedule.warmup_steps=2",
    "training.checkpoint_every=3",
]
SHAPE = [
    f"model.shape.{name}={value}"
    for name, value in {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }.items()
]


def recipe(*overrides: str) -> PretrainRecipe:
    return load_recipe(PretrainRecipe, None, [*TINY, *overrides])


def test_a_run_leaves_the_recipe_the_metrics_the_report_and_a_model(tmp_path: Path) -> None:
    given = recipe(*SHAPE)
    result = pretrain(given, tmp_path / "run", data=TrainingData(TinyBatches()))
    assert result.finished
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "lock",
        "metrics.jsonl",
        "recipe.toml",
        "report.html",
        "samples.jsonl",
        "tensorboard",
    ]
    assert load_recipe(PretrainRecipe, tmp_path / "run" / "recipe.toml") == given
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["training"]["steps"] == 6


def test_the_report_is_one_page_without_anything_from_outside(tmp_path: Path) -> None:
    pretrain(recipe(*SHAPE), tmp_path / "run", data=TrainingData(TinyBatches()))
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"(src|href)=|<script|@import|url\(", page)
    assert page.count("<polyline") == 6
    assert "hidden_size = 32" in page
    assert "model.safetensors" in page


def test_training_goes_on_from_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    parent = tiny_model(seed=3)
    save_huggingface(parent, tmp_path / "parent")
    continued = recipe(f"model.checkpoint={tmp_path / 'parent'}")
    start = build_model(continued, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), parent.parameters(), strict=True))

    result = pretrain(continued, tmp_path / "run", data=TrainingData(TinyBatches()))
    with closing(open_checkpoint(tmp_path / "parent")) as opened:
        untouched = load_model(opened)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), parent.parameters(), strict=True))
    assert '"parent"' in (result.checkpoint / "model" / "lineage.json").read_text()


def test_a_preset_takes_the_vocabulary_of_the_tokenizer() -> None:
    model = build_model(recipe("model.preset=stories15m", "model.vocab_size=512"), torch.device("cpu"))
    assert (model.config.vocab_size, model.config.hidden_size) == (512, 288)


def test_two_models_of_one_seed_start_alike() -> None:
    one, two, other = (
        build_model(recipe(*SHAPE, f"training.seed={seed}"), torch.device("cpu")).output_matrix.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([], RecipeError, "'model'"),
        (["model.preset=stories15m", *SHAPE], RecipeError, "exactly one of preset, shape and checkpoint"),
        ([*SHAPE, "training.steps=0"], RecipeError, "training.steps"),
        ([*SHAPE, "training.optimizer.learning_rate=-1.0"], RecipeError, "learning_rate"),
        ([*SHAPE, "training.optimizer.name=sgd"], RecipeError, "'adamw' or 'muon'"),
        ([*SHAPE, "training.schedule.warmup_steps=7"], RecipeError, "exceed the 6 steps"),
        ([*SHAPE, "training.schedule.name=wsd"], RecipeError, "needs decay_steps"),
        ([*SHAPE, "training.milestone_every=4"], RecipeError, "multiple of checkpoint_every"),
        ([*SHAPE, "training.learning_rate=1.0"], RecipeError, "unknown key 'training.learning_rate'"),
        (["model.preset=stories16m"], NotFoundError, "did you mean 'stories15m'"),
        (["model.checkpoint=nowhere"], NotFoundError, "no such file or folder"),
        ([*SHAPE, "model.shape.num_key_value_heads=3"], ConfigError, "evenly"),
        ([*SHAPE, "device=abacus"], ConfigError, "not usable"),
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], error: type[CamelidError], message: str
) -> None:
    with pytest.raises(error) as caught:
        pretrain(recipe(*overrides), tmp_path / "run", data=TrainingData(TinyBatches()))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


class NoAttention(AttentionContext):
    """Values as they are: what is left are the products with the weights."""

    def attend(self, layer, q_THD, k_TKD, v_TKD, *, scale, reach=None):
        return v_TKD.repeat_interleave(q_THD.shape[1] // v_TKD.shape[1], 1)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token_are_those_that_torch_counts(tied: bool, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "instruction_set", lambda: None)  # of native products torch counts nothing
    model, ids = tiny_model(tied=tied), torch.arange(48) % VOCAB_SIZE
    with FlopCounterMode(display=False) as counter:
        hidden = model(ids, torch.arange(48), NoAttention())
        chunked_cross_entropy(hidden, model.output_matrix.weight, ids, torch.ones(48)).objective.backward()
    # Queries and keys that nothing is made of have no backward products.
    unused = sum(4 * p.numel() for name, p in model.named_parameters() if "q_proj" in name or "k_proj" in name)
    norms = sum(6 * p.numel() for p in model.parameters() if p.ndim == 1)
    attention = 6 * 2 * 24 * 32
    expected = counter.get_total_flops() / 48 + unused + norms + attention
    assert flops_per_token(model, [24, 24]) == expected


def steps(count: int) -> list[StepMetrics]:
    return [StepMetrics(n, 1 / n, None, 1e-3, 1.0, 64, 61.0, 0.1, 640.0, 0.5) for n in range(1, count + 1)]


def test_a_long_curve_is_thinned_to_means() -> None:
    points = thin([(float(n), 2.0) for n in range(100_000)])
    assert len(points) <= 400
    assert {y for _, y in points} == {2.0}


def test_values_that_are_not_finite_do_not_break_a_curve() -> None:
    assert "nan" not in draw(Curve("loss", [(1, 1.0), (2, float("nan")), (3, 2.0)]))
    assert draw(Curve("loss", [(1, float("inf"))])) == ""


def test_text_from_a_recipe_is_shown_not_interpreted() -> None:
    page = render("<b>", steps(3), [("Recipe", "<img onerror=1>")])
    assert "<img" not in page
    assert "<b>" not in page


def test_a_run_without_steps_has_a_report_too() -> None:
    assert "No step has been made" in render("run", [], [])
