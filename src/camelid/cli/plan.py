"""`camelid plan`: what a training recipe will take, before it is paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from camelid.plan.training import TrainingPlan

app = typer.Typer(add_completion=False, help="Tell what a training run will take: memory, time, disk, cost.")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A TOML file for `camelid pretrain` or `camelid sft`.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set a.b=value.")] = None,
    device: Annotated[
        str | None, typer.Option(help="To plan for: one that is here, or a100, h100, h200, b200, rtx4090.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of one device, for the cost.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Plan a run. On a device that is here, one block of the model is run for a second or two."""
    planned = _plan(recipe, overrides or [], device, price_per_hour)
    print(json.dumps(planned.to_json(), indent=2) if as_json else planned.text())


def _plan(recipe: Path, overrides: list[str], device: str | None, price_per_hour: float | None) -> TrainingPlan:
    import tomllib

    from camelid.base.errors import RecipeError
    from camelid.base.files import existing_file
    from camelid.base.recipe import load_recipe
    from camelid.posttrain.plan import plan_sft
    from camelid.posttrain.sft import SftRecipe
    from camelid.train.plan import plan_pretraining
    from camelid.train.pretrain import PretrainRecipe

    try:
        settings = tomllib.loads(existing_file(recipe).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not a TOML file: {error}", where=recipe) from error
    # The two kinds of recipe differ in what `model` is: a table, or the name of one that exists.
    if isinstance(settings.get("model"), str):
        return plan_sft(load_recipe(SftRecipe, recipe, overrides), device=device, price_per_hour=price_per_hour)
    return plan_pretraining(
        load_recipe(PretrainRecipe, recipe, overrides), device=device, price_per_hour=price_per_hour
    )
