from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from test_recipe import TOY, load

from camelid.base.errors import CamelidError, FormatError, ResourceError, TrainingError
from camelid.pipeline.run import PipelineResult, run_pipeline
from camelid.train.run_lock import RunLock

CHAIN = (
    TOY
    + """
[stages.aside]
run = "copy"
texts = ["in.txt"]
suffix = "aside"

[stages.last]
run = "copy"
texts = ["{second}", "{aside}"]
"""
)


def run(*overrides: str, text: str = CHAIN) -> PipelineResult:
    return run_pipeline(load(text, *overrides), Path("out"))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def text_of(result: PipelineResult, name: str) -> str:
    return next(stage for stage in result.stages if stage.name == name).result.read_text()


def test_each_stage_works_on_what_the_ones_it_names_have_made(folder: Path) -> None:
    result = run("stages.second.suffix='two '")
    assert result.ran == {"first", "second", "aside", "last"}
    assert result.stopped_in is None
    assert text_of(result, "last") == "llama\ntwo llama\naside"


def test_what_is_done_is_not_done_again_and_one_line_for_each_stage_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    before = times(folder / "out")
    capsys.readouterr()
    assert run().ran == frozenset()
    assert times(folder / "out") == before
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "[1/4] first: cached",
        "[2/4] second: cached",
        "[3/4] aside: cached",
        "[4/4] last: cached",
    ]


def test_a_changed_setting_reruns_its_stage_and_those_that_build_on_it(folder: Path) -> None:
    first = run()
    changed = run("stages.second.suffix=new")
    assert changed.ran == {"second", "last"}
    assert text_of(changed, "last") == "llama\nnewllama\naside"
    assert text_of(first, "last") == "llama\nllama\naside", "the old result is kept"
    assert run().ran == frozenset()


def test_a_setting_that_leaves_the_result_alone_reruns_nothing(folder: Path) -> None:
    run()
    assert run("stages.first.verbose=1").ran == frozenset()


def test_changed_contents_of_a_file_rerun_what_reads_it_and_a_touched_file_does_not(folder: Path) -> None:
    run()
    os.utime("in.txt", (0, 0))
    assert run().ran == frozenset()
    Path("in.txt").write_text("alpaca\n")
    assert run().ran == {"first", "second", "aside", "last"}


def test_another_name_for_an_earlier_stage_reruns_only_that_stage(folder: Path) -> None:
    run(text=TOY)
    renamed = TOY.replace("stages.first", "stages.begin").replace("{first}", "{begin}")
    assert run(text=renamed).ran == {"begin"}


def test_a_new_stage_leaves_the_others_alone(folder: Path) -> None:
    run(text=TOY)
    assert run().ran == {"aside", "last"}


def test_a_folder_that_was_moved_is_still_known(folder: Path) -> None:
    run()
    Path("out").rename("elsewhere")
    assert run_pipeline(load(CHAIN), Path("elsewhere")).ran == frozenset()


def test_a_result_that_was_deleted_is_made_again(folder: Path) -> None:
    second = run().stages[1]
    second.result.unlink()
    assert run().ran == {"second"}


def test_a_failure_keeps_what_was_done_before_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="broke down"):
        run("stages.aside.run=fail")
    assert "[3/4] aside: failed" in capsys.readouterr().err
    assert not (folder / "out" / "model").exists()
    assert run("stages.aside.run=copy").ran == {"aside", "last"}


@pytest.mark.parametrize("kind", ["interrupted", "impatient"])
def test_nothing_follows_a_stage_that_was_stopped(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(f"stages.second.run={kind}")
    assert result.stopped_in == "second"
    assert result.ran == {"first", "second"}
    assert [stage.record is not None for stage in result.stages] == [True, False, False, False]
    assert "[2/4] second: stopped" in capsys.readouterr().err
    assert run(f"stages.second.run={kind}").ran == {"second"}


def test_a_signal_in_the_last_step_of_a_stage_is_not_forgotten(folder: Path) -> None:
    result = run("stages.second.run=late_signal")
    assert result.stopped_in == "aside"
    assert result.ran == {"first", "second"}
    assert run("stages.second.run=late_signal").ran == {"aside", "last"}


def test_a_signal_in_the_very_last_stage_leaves_nothing_to_go_on_with(folder: Path) -> None:
    assert run("stages.second.run=late_signal", text=TOY).stopped_in is None


def test_a_file_that_changes_while_it_is_read_gives_no_result(folder: Path) -> None:
    with pytest.raises(FormatError, match="changed while the stage 'first'"):
        run("stages.first.run=meddled")
    assert not list(folder.glob("out/first-*/stage.json"))


def test_two_pipelines_do_not_work_in_one_folder(folder: Path) -> None:
    with closing(RunLock(folder / "out")), pytest.raises(ResourceError, match="another process"):
        run()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("{"), "no record of a stage"),
        (lambda path: shutil.copy(next(Path("out").glob("aside-*/stage.json")), path), "the work of another stage"),
    ],
)
def test_a_damaged_record_is_no_result(folder: Path, damage, message: str) -> None:
    damage(run().stages[0].folder / "stage.json")
    with pytest.raises(CamelidError, match=message):
        run()


def test_what_a_kill_left_of_a_stage_is_no_result(folder: Path) -> None:
    stage = run().stages[3]
    (stage.folder / "stage.json").unlink()
    assert run().ran == {"last"}


MODELS = """
[stages.base]
run = "model"
texts = ["in.txt"]

[stages.chat]
run = "model"
texts = ["{base}/text.txt"]
suffix = "chat"
"""


def model_of(result: PipelineResult) -> str:
    assert result.model == Path("out/model")
    assert [path.name for path in result.model.iterdir()] == ["text.txt"]
    return (result.model / "text.txt").read_text()


def test_the_model_folder_follows_the_recipe(folder: Path) -> None:
    assert model_of(run(text=MODELS)) == "llama\nchat"
    assert model_of(run("stages.chat.suffix=talk", text=MODELS)) == "llama\ntalk"
    assert model_of(run(text=MODELS)) == "llama\nchat"


def test_the_model_folder_never_holds_half_a_pipelines_model(folder: Path) -> None:
    assert run("stages.chat.run=interrupted_model", text=MODELS).model is None
    assert not Path("out/model").exists()
    run(text=MODELS)
    assert run("stages.chat.run=interrupted_model", "stages.base.suffix=new", text=MODELS).model is None
    assert Path("out/model/text.txt").read_text() == "llama\nchat", "the last whole one stays"


def test_without_hard_links_the_model_is_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    assert model_of(run(text=MODELS)) == "llama\nchat"
    before = times(folder / "out")
    assert run(text=MODELS).model is not None
    assert times(folder / "out") == before


def test_what_a_kill_left_of_the_model_folder_goes(folder: Path) -> None:
    Path("out/.model.x.partial").mkdir(parents=True)
    run(text=MODELS)
    assert not list(Path("out").glob(".model.*"))


def test_a_pipeline_without_training_has_no_model(folder: Path) -> None:
    assert run(text=TOY).model is None
