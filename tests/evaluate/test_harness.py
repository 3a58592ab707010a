"""The harness: a recipe in, results and a report out, and nothing measured twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from camelid.base.errors import CamelidError, FormatError, NotFoundError, RecipeError
from camelid.base.files import sha256
from camelid.base.recipe import load_recipe, validated
from camelid.evaluate import TASKS, EvaluateRecipe, EvaluationReport, Task, evaluate
from camelid.evaluate.tasks.bits_per_byte import BitsPerByte
from camelid.evaluate.tasks.questions import Questions


@pytest.fixture
def held_out(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[2:8]))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "<b>Why</b>?", "answer": "because", "kind": "deep"}\n')
    return path


@pytest.fixture
def recipe(model_folder: Path, held_out: Path, questions: Path) -> EvaluateRecipe:
    return recipe_of(
        model_folder,
        {"task": "bits_per_byte", "texts": [str(held_out)]},
        {"task": "questions", "path": str(questions), "max_tokens": 4},
    )


def recipe_of(model: Path, *tasks: object, **settings: object) -> EvaluateRecipe:
    return validated(EvaluateRecipe, {"model": str(model), "tasks": tasks, "device": "cpu", **settings}, "test")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the tasks that were measured, in order."""
    labels: list[str] = []
    for task in (BitsPerByte, Questions):
        measure = task.measure

        def noted(self: Task, subject: object, measure: object = measure) -> object:
            labels.append(self.label)
            return measure(self, subject)  # type: ignore[operator]

        monkeypatch.setattr(task, "measure", noted)
    return labels


def test_the_results_say_what_was_measured_of_what(recipe: EvaluateRecipe, model_folder: Path, tmp_path: Path) -> None:
    report = evaluate(recipe, tmp_path / "out")
    bits, questions = report.results
    assert (bits.name, questions.name) == ("bits_per_byte", "questions")
    assert 1 < bits.main.value < 20
    assert bits.main.standard_error is not None
    assert bits.seconds > 0
    assert [metric.name for metric in questions.measurement.metrics] == ["accuracy", "accuracy: deep"]
    assert report.model.files["model.safetensors"] == sha256(model_folder / "model.safetensors")
    assert report.model.lineage is not None
    assert report.model.lineage["recipe"] == "none"
    assert EvaluationReport.model_validate_json((tmp_path / "out" / "results.json").read_bytes()) == report
    assert report.result("questions") is questions
    for said in (f"bits per byte {bits.main.value:.4g} ± ", "accuracy: deep 0 ± 0 (95%: 0 to 0.793)", "windows of 32"):
        assert said in report.text()


def test_the_page_stands_alone_and_shows_samples_as_text(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    report = evaluate(recipe, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{report.results[0].main.value:.5g}" in page
    assert "&lt;b&gt;Why&lt;/b&gt;?" in page
    assert "because" in page
    assert report.model.files["model.safetensors"] in page
    for outside in ("http://", "https://", "<script", "<link", "src="):
        assert outside not in page


def test_a_second_call_finds_the_results(
    recipe: EvaluateRecipe, tmp_path: Path, measured: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(recipe, tmp_path / "out")
    written = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    capsys.readouterr()
    assert evaluate(recipe, tmp_path / "out") == first
    assert measured == ["bits_per_byte", "questions"]
    assert "nothing has changed" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == written


def test_what_has_changed_is_measured_again_and_only_that(
    recipe: EvaluateRecipe, model_folder: Path, held_out: Path, questions: Path, tmp_path: Path, measured: list[str]
) -> None:
    evaluate(recipe, tmp_path / "out")
    measured.clear()
    questions.write_text('{"question": "How?", "answer": "so"}\n')
    evaluate(recipe, tmp_path / "out")
    assert measured == ["questions"]
    measured.clear()
    more = recipe_of(
        model_folder,
        {"task": "questions", "path": str(questions), "max_tokens": 4, "name": "the questions"},
        {"task": "bits_per_byte", "texts": [str(held_out)], "overlap": 3},
    )
    report = evaluate(more, tmp_path / "out")
    assert measured == ["bits_per_byte"], "a new name alone changes nothing"
    assert [result.name for result in report.results] == ["the questions", "bits_per_byte"]
    measured.clear()
    evaluate(more.model_copy(update={"seed": 1}), tmp_path / "out")
    assert len(measured) == 2


def test_another_model_under_the_same_name_is_measured(
    recipe: EvaluateRecipe, model_folder: Path, tmp_path: Path, measured: list[str]
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    recipe = recipe.model_copy(update={"model": str(folder)})
    evaluate(recipe, tmp_path / "out")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    evaluate(recipe, tmp_path / "out")
    assert len(measured) == 4


def test_an_evaluation_that_was_stopped_goes_on(
    recipe: EvaluateRecipe, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def stop(self: Task, subject: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Questions, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe, tmp_path / "out")
    assert measured == ["bits_per_byte"]
    so_far = EvaluationReport.model_validate_json((tmp_path / "out" / "results.json").read_bytes())
    assert [result.name for result in so_far.results] == ["bits_per_byte"]
    assert len(evaluate(recipe, tmp_path / "out").results) == 2
    assert measured == ["bits_per_byte", "questions"]


@pytest.mark.parametrize(
    ("tasks", "error", "says"),
    [
        ([], RecipeError, "tasks"),
        ([{"texts": ["a"]}], RecipeError, "a task has no name"),
        ([3], RecipeError, "a task has no name"),
        ([{"task": "bits_per_bite"}], NotFoundError, "bits_per_byte"),
        ([{"task": "questions", "path": "a", "shots": 5}], RecipeError, "unknown key 'shots'"),
        ([{"task": "questions", "path": "a"}, {"task": "questions", "path": "b"}], RecipeError, "two tasks are called"),
        ([{"task": "questions", "path": "nowhere.jsonl"}], NotFoundError, "nowhere.jsonl"),
    ],
)
def test_a_bad_recipe_is_refused_before_the_model_is_loaded(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: list[object],
    error: type[CamelidError],
    says: str,
) -> None:
    monkeypatch.setattr("camelid.llm.load", None)
    with pytest.raises(error, match=says):
        evaluate(recipe_of(model_folder, *tasks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused(recipe: EvaluateRecipe, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(NotFoundError, match="no vocabulary"):
        evaluate(recipe.model_copy(update={"model": str(folder)}), tmp_path / "out")


def test_a_missing_model_is_said_to_be(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        evaluate(recipe.model_copy(update={"model": str(tmp_path / "nowhere")}), tmp_path / "out")


def test_results_of_something_else_are_not_overwritten(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"mine": 1}')
    with pytest.raises(FormatError, match="no evaluation results"):
        evaluate(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_text() == '{"mine": 1}'


def test_every_task_is_named_as_its_registry_has_it() -> None:
    for name in TASKS.names():
        task = TASKS.load(name)
        assert issubclass(task, Task)
        assert task.model_fields["task"].default == name


def test_the_recipe_that_comes_along_is_valid() -> None:
    path = Path(__file__).parent.parent.parent / "recipes" / "evaluate.toml"
    assert [task.label for task in load_recipe(EvaluateRecipe, path).tasks] == ["bits_per_byte", "questions"]
