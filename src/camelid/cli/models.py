"""`camelid models`: what can be had, what is here, and the shapes that can be trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camelid.base.files import format_bytes

if TYPE_CHECKING:
    from camelid.model.config import ModelConfig

DTYPES = ("float32", "bfloat16")

app = typer.Typer(add_completion=False, help="List the models that can be had and the shapes that can be trained.")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """List the catalogue (models with weights) and the presets (shapes), with exact parameter counts."""
    if context.invoked_subcommand is not None:
        return
    if as_json:
        print(json.dumps({"catalogue": _catalogue(), "presets": _presets()}, indent=2))
        return
    print("Models (camelid pull NAME, camelid chat NAME); * is on this machine")
    _print_table(_catalogue())
    print("\nPresets: shapes without weights")
    _print_table(_presets())


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(help="A model that was pulled.")]) -> None:
    """Delete a pulled model from this machine."""
    from camelid.checkpoint.pull import remove

    print(f"removed {name}: {format_bytes(remove(name))} freed")


def _catalogue() -> list[dict[str, Any]]:
    from camelid.checkpoint.catalogue import CATALOGUE, BundledSource, HubSource, PackageSource
    from camelid.checkpoint.pull import installed
    from camelid.model.presets import PRESETS

    here = {model.name: model for model in installed()}
    rows = []
    for entry in CATALOGUE.values():
        preset = PRESETS[entry.preset]
        hub_id = entry.source.repo_id if isinstance(entry.source, HubSource) else None
        local = here.pop(entry.name, None) or here.pop(hub_id or "", None)
        match entry.source:
            case PackageSource(package=package):
                where = f"package {package}"
            case BundledSource():
                where = "comes with camelid"
            case HubSource(repo_id=repo_id):
                where = f"hub {repo_id}"
        rows.append(
            {"name": entry.name, **_shape(preset.config), "licence": preset.licence, "source": where}
            | {"installed": str(local.path) if local else None}
        )
    for model in here.values():  # pulled from the hub by id
        rows.append({"name": model.name, "source": model.origin, "installed": str(model.path)})
    return rows


def _presets() -> list[dict[str, Any]]:
    from camelid.model.presets import PRESETS

    return [{"name": p.name, **_shape(p.config), "licence": p.licence} for p in PRESETS.values()]


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "parameters": config.num_parameters,
        "context": config.max_position_embeddings,
        "memory_bytes": {dtype: config.memory_bytes(dtype) for dtype in DTYPES},
        "kv_cache_bytes_per_token": config.kv_bytes_per_token("bfloat16"),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    header = ["", "name", "parameters", "context", *DTYPES, "licence"]
    cells = [header, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        aligned = [
            text.rjust(width) if 2 <= column < 2 + 2 + len(DTYPES) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())


def _cells(row: dict[str, Any]) -> list[str]:
    mark = "*" if row.get("installed") else ""
    if "parameters" not in row:
        return [mark, row["name"], *[""] * (3 + len(DTYPES))]
    memory = [format_bytes(row["memory_bytes"][dtype]) for dtype in DTYPES]
    return [mark, row["name"], f"{row['parameters']:,}", f"{row['context']:,}", *memory, row["licence"]]
