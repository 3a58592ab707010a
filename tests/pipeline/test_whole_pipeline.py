"""From text to a measured chat model with one recipe, through kills and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_pipeline import weights_of, write_inputs

import camelid
from camelid.base.recipe import load_recipe
from camelid.cli.main import main
from camelid.pipeline.recipe import PipelineRecipe
from camelid.pipeline.run import PipelineResult, run_pipeline
from camelid.train.metrics import StepMetrics
from camelid.train.progress import StepDisplay


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)


def run(output: str, *overrides: str, recipe: str = "small.toml") -> PipelineResult:
    return run_pipeline(load_recipe(PipelineRecipe, Path(recipe), overrides), Path(output))


@pytest.fixture(scope="module")
def finished(inputs: Path) -> PipelineResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        return run("runs/small")


def test_text_becomes_a_model_that_answers(finished: PipelineResult) -> None:
    assert finished.ran == {"tokenizer", "data", "base", "chat", "exam"}
    assert finished.model == Path("runs/small/model")
    reply = camelid.load(finished.model, device="cpu").generate(
        [{"role": "user", "content": "Who eats?"}], max_tokens=2
    )
    assert len(reply.token_ids) <= 2


def test_the_model_is_that_of_the_last_training_stage_and_takes_no_more_space(finished: PipelineResult) -> None:
    assert finished.model is not None
    weights = finished.model / "model.safetensors"
    chat = finished.stages[3]
    assert weights.samefile(chat.result / "model.safetensors")
    assert {path.name for path in finished.model.iterdir()} == {path.name for path in chat.result.iterdir()}


def test_the_report_tells_the_whole_story_on_a_page_of_its_own(finished: PipelineResult) -> None:
    page = finished.report.read_text()
    assert not re.search(r"(src|href)=|<script|@import|url\(", page)
    for told in ("exact_dedup", "repeats", "bits_per_byte", "accuracy", "Who sleeps?", "The llama", "texts/0.txt"):
        assert told in page
    for stage in finished.stages:
        assert stage.key in page
    assert page.count("<polyline") >= 4
    assert "cached" not in page


def test_a_second_run_does_nothing_and_a_later_stage_can_change_alone(
    finished: PipelineResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("runs/small").rglob("*")}
    assert run("runs/small").ran == frozenset()
    assert {path: path.stat().st_mtime_ns for path in Path("runs/small").rglob("*")} == before

    changed = run("runs/small", "stages.chat.training.seed=1")
    assert changed.ran == {"chat", "exam"}
    assert changed.model is not None
    assert (changed.model / "model.safetensors").read_bytes() == weights_of(changed.stages[3])
    assert changed.report.read_text().count("<td>cached</td>") == 3

    back = run("runs/small", "stages.base.training.log_every=1", "stages.base.training.checkpoint_every=4")
    assert back.ran == frozenset()
    assert weights_of(back.stages[3]) == weights_of(finished.stages[3])
    assert (back.model / "model.safetensors").samefile(finished.stages[3].result / "model.safetensors")
    assert back.stages[3].key in back.report.read_text()


def command(output: str) -> list[str]:
    return ["camelid", "run", "long.toml", "--output", output]


def killed_run(output: str, when: Callable[[], bool]) -> int:
    """Start the long pipeline and kill it -9 at some moment; the exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command(output)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(camelid.__file__).parents[1]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return process.returncode


def num_steps(output: str) -> int:
    files = list(Path(output).glob("base-*/metrics.jsonl"))
    return files[0].read_text().count("\n") if files else 0


def test_killed_and_stopped_in_the_middle_of_training_it_ends_with_the_bits_of_an_undisturbed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _, _ = Path("small.toml").read_text().partition("[stages.chat]")
    Path("long.toml").write_text(text.replace("steps = 8\ncheckpoint_every = 2", "steps = 60\ncheckpoint_every = 10"))
    assert killed_run("runs/disturbed", lambda: num_steps("runs/disturbed") > 12) == -signal.SIGKILL

    show = StepDisplay.show

    def interrupt(display: StepDisplay, metrics: StepMetrics) -> None:
        show(display, metrics)
        if metrics.step == 58:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(StepDisplay, "show", interrupt)
        patch.setattr(sys, "argv", command("runs/disturbed"))
        with pytest.raises(SystemExit, match="130"):
            main()
    said = capsys.readouterr().err
    assert "[2/3] data: cached" in said
    assert "going on from the checkpoint of step" in said
    assert "stopped before 'base' was done; the same command goes on from there" in said

    disturbed = run("runs/disturbed", recipe="long.toml")
    undisturbed = run("runs/undisturbed", recipe="long.toml")
    assert disturbed.ran == {"base"}
    assert weights_of(disturbed.stages[2]) == weights_of(undisturbed.stages[2])


def test_the_command_says_how_to_talk_to_the_model(
    finished: PipelineResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["camelid", "run", "small.toml"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "camelid chat runs/small/model" in capsys.readouterr().out
