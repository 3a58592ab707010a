from __future__ import annotations

from pathlib import Path

import pytest

from camelid.base.errors import CamelidError, NotFoundError, RecipeError
from camelid.base.recipe import load_recipe
from camelid.pipeline.keys import keyed
from camelid.pipeline.recipe import PipelineRecipe
from camelid.pipeline.references import references, substituted

TOY = """
[stages.first]
run = "copy"
texts = ["in.txt"]

[stages.second]
run = "copy"
texts = ["{first}"]
"""
MODEL = (
    TOY
    + """
[stages.base]
run = "pretrain"
data.shards = "{first}"
data.sequence_length = 256
model.preset = "stories15m"
"""
)


def load(text: str, *overrides: str) -> PipelineRecipe:
    path = Path("pipeline.toml")
    path.write_text(text)
    return load_recipe(PipelineRecipe, path, overrides)


def test_stages_come_in_the_order_of_the_file(folder: Path) -> None:
    stages = load(MODEL).parsed()
    assert [(stage.name, stage.kind_name, stage.names) for stage in stages] == [
        ("first", "copy", ()),
        ("second", "copy", ("first",)),
        ("base", "pretrain", ("first",)),
    ]


@pytest.mark.parametrize(
    ("overrides", "error", "messages"),
    [
        (["stages.second.sufix=x"], RecipeError, ["unknown key 'stages.second.sufix'", "'suffix'"]),
        (["stages.base.training.steps=0"], RecipeError, ["'stages.base.training.steps'", "greater than or equal to 1"]),
        (["stages.base.training.optimiser=1"], RecipeError, ["'stages.base.training.optimiser'", "'optimizer'"]),
        (["stages.base.model.preset=stories16m"], NotFoundError, ["stages.base", "'stories15m'"]),
        (["stages.base.data.sequence_length=4096"], RecipeError, ["stages.base, data.sequence_length", "positions"]),
        (["stages.chat={run='sft', model='x', data={sources=['y']}, chat_format='z'}"], NotFoundError, ["stages.chat"]),
        (["stages.second.texts='in.txt'"], RecipeError, ["'stages.second.texts'"]),
        (["stages.second.run=cpoy"], NotFoundError, ["'cpoy'", "stages.second.run", "'copy'"]),
        (["stages.second.run=1"], RecipeError, ["'stages.second.run'", "copy"]),
        (["stages.third.texts=[]"], RecipeError, ["'stages.third.run' is missing"]),
        (["stages.second.output=here"], RecipeError, ["'stages.second.output' is chosen by the pipeline"]),
        (["stages.second.texts=['{frist}']"], RecipeError, ["'stages.second.texts.0' names '{frist}'", "'first'"]),
        (["stages.first.texts=['{second}']"], RecipeError, ["'second', which does not come before"]),
        (["stages.second.texts=['{second}']"], RecipeError, ["'second', which does not come before"]),
        (["stages.first.suffix='{any}'"], RecipeError, ["nothing to name yet", "{{any}}"]),
        (["stages.1st.run=copy"], RecipeError, ["'1st' cannot be the name of a stage"]),
        (["stages.a/b.run=copy"], RecipeError, ["cannot be the name"]),
        (["outptu=runs/x"], RecipeError, ["unknown key 'outptu'", "'output'"]),
        (["stages=3"], RecipeError, ["'stages'"]),
    ],
)
def test_an_impossible_stage_is_refused_before_anything_runs(
    folder: Path, overrides: list[str], error: type[CamelidError], messages: list[str]
) -> None:
    with pytest.raises(error) as caught:
        load(MODEL, *overrides)
    for message in messages:
        assert message in str(caught.value)


def test_what_goes_wrong_inside_a_verbs_own_recipe_names_the_stage(folder: Path) -> None:
    text = '[stages.data]\nrun = "prepare"\ntokenizer = "t"\nclean = {sources = ["in.txt"], steps = [{step = "c5"}]}'
    with pytest.raises(NotFoundError, match=r"stages\.data"):
        load(text)


def test_a_recipe_without_stages_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="'stages'"):
        load("[stages]")


def test_a_file_that_is_not_there_is_missed_before_anything_runs(folder: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        keyed(load(TOY, "stages.second.texts=['{first}', 'nowhere/*.txt']").parsed(), folder / "out")
    assert "'nowhere/*.txt' matches no file (stages.second)" in str(caught.value)


def test_a_model_that_is_not_there_is_missed_before_anything_runs(folder: Path) -> None:
    text = '[stages.talk]\nrun = "sft"\nmodel = "smollm2-135m-instrct"\ndata.sources = ["in.txt"]'
    with pytest.raises(NotFoundError, match=r"stages\.talk(.|\n)*smollm2-135m-instruct"):
        keyed(load(text).parsed(), folder / "out")


def test_references_are_found_and_replaced_at_any_depth() -> None:
    settings = {"a": "{x}/y", "b": {"c": ["{{x}}", 1, "{y} {x}"]}, "d": "{not a name} {}"}
    assert list(references(settings)) == [("a", "x"), ("b.c.2", "y"), ("b.c.2", "x")]
    assert substituted(settings, lambda name: f"<{name}>") == {
        "a": "<x>/y",
        "b": {"c": ["{x}", 1, "<y> <x>"]},
        "d": "{not a name} {}",
    }
