"""Recipes are strict: nothing is dropped, guessed or converted in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
from pydantic import Field, model_validator

from camelid.base.errors import NotFoundError, RecipeError
from camelid.base.recipe import Recipe, load_recipe


class Optimizer(Recipe):
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Training(Recipe):
    output: Path
    steps: int = 100
    optimizer: Optimizer = Optimizer()
    stages: list[Optimizer] = []


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_read_and_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, 'output = "runs/a"\n[optimizer]\nlearning_rate = 0.1\nbetas = [0.8, 0.9]\n')
    recipe = load_recipe(Training, path, ["optimizer.learning_rate=3e-4", "steps=7", "output=runs/b c"])
    assert recipe == Training(
        output=Path("runs/b c"), steps=7, optimizer=Optimizer(learning_rate=3e-4, betas=(0.8, 0.9))
    )


@pytest.mark.parametrize(
    ("text", "overrides", "key", "hint"),
    [
        ('output = "a"\nstep = 3', [], "step", "steps"),
        ('output = "a"\n[optimizer]\nlearning_rat = 0.1', [], "optimizer.learning_rat", "learning_rate"),
        ('output = "a"', ["optimizer.beta=[0.1, 0.2]"], "optimizer.beta", "betas"),
        ('output = "a"\n[[stages]]\nbetass = [0.1, 0.2]', [], "stages.0.betass", "betas"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, text: str, overrides: list[str], key: str, hint: str
) -> None:
    with pytest.raises(RecipeError, match=f"unknown key '{key}'") as caught:
        load_recipe(Training, write(tmp_path, text), overrides)
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'output': field required"),
        ('output = "a"\nsteps = "7"', "'steps': input should be a valid integer, not '7'"),
        ('output = "a"\nsteps = 7.5', "'steps'"),
        ('output = "a"\n[optimizer]\nlearning_rate = 0.0', "'optimizer.learning_rate': input should be greater than 0"),
        ("output = ", "not a TOML file"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Training, write(tmp_path, text))
    assert message in caught.value.what


def test_a_tables_own_rule_is_told_without_its_contents(tmp_path: Path) -> None:
    class Span(Recipe):
        first: int
        last: int

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.last < self.first:
                raise ValueError("last comes before first")
            return self

    class Whole(Recipe):
        span: Span

    path = write(tmp_path, "[span]\nfirst = 3\nlast = 2\n")
    with pytest.raises(RecipeError) as inner:
        load_recipe(Whole, path)
    assert inner.value.what == "'span': last comes before first"
    with pytest.raises(RecipeError) as outer:
        load_recipe(Span, None, ["first=3", "last=2"])
    assert outer.value.what == "last comes before first"


def test_a_missing_recipe_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        load_recipe(Training, tmp_path / "recipe.toml")


@pytest.mark.parametrize("override", ["steps", "=3", "steps.more=3"])
def test_unreadable_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(Training, write(tmp_path, 'output = "a"\nsteps = 1'), [override])


def test_an_override_sets_one_value_only() -> None:
    class Named(Recipe):
        name: str = ""

    assert load_recipe(Named, None, ["name=1\nother = 2"]).name == "1\nother = 2"
