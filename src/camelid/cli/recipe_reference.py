"""Writes the recipe reference from the classes: `python -m camelid.cli.recipe_reference docs/reference/recipes.md`."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from camelid.base.files import write_text
from camelid.base.recipe import Recipe
from camelid.data.prepare import PrepareRecipe
from camelid.data.steps import STEPS
from camelid.data.train_tokenizer import TokenizerRecipe
from camelid.evaluate import TASKS, EvaluateRecipe
from camelid.pipeline.recipe import PipelineRecipe
from camelid.posttrain.sft import SftRecipe
from camelid.train.pretrain import PretrainRecipe
from camelid.train.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from camelid.base.registry import Registry

RECIPES: dict[str, type[Recipe]] = {
    "camelid tokenizer train": TokenizerRecipe,
    "camelid prepare": PrepareRecipe,
    "camelid pretrain": PretrainRecipe,
    "camelid sft": SftRecipe,
    "camelid eval": EvaluateRecipe,
    "camelid run": PipelineRecipe,
}
"""Verb → the recipe that it takes."""

CHOICES: dict[str, tuple[str, Registry[Any]]] = {
    "Cleaning steps": ("`[[clean.steps]]` of `camelid prepare`, chosen by `step`", STEPS),
    "Evaluation tasks": ("`[[tasks]]` of `camelid eval`, chosen by `task`", TASKS),
}
"""Title → where such tables stand, and the registry of their classes."""

SHARED: dict[str, type[Recipe]] = {"Training": TrainSettings}
"""Title of a section → tables that several recipes have."""

HEAD = """# Recipes

A recipe is a TOML file. An unknown key, a wrong type or an impossible value is an error before anything runs, and any
setting can be changed on the command line: `--set training.steps=50`. Paths are relative to the current folder. `.#.`
stands for one of several tables, written `[[name]]`.
"""


def reference() -> str:
    """Every recipe's settings as Markdown."""
    lines = [HEAD]
    for verb, schema in RECIPES.items():
        lines += [f"## `{verb}`", "", _summary(schema), "", *_table(schema)]
    for title, schema in SHARED.items():
        lines += [f"## {title}", "", _summary(schema), "", *_table(schema)]
    for title, (where, registry) in CHOICES.items():
        lines += [f"## {title}", "", f"{where}.", ""]
        for name in registry.names():
            schema = registry.load(name)
            lines += [f"### `{name}`", "", _summary(schema), "", *_table(schema)]
    return "\n".join(lines).rstrip() + "\n"


def _table(schema: type[BaseModel]) -> list[str]:
    rows = [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in _rows(schema, "")]
    return ["| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _rows(schema: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every setting, those of inner tables with their dotted keys."""
    meanings = _attribute_docstrings(schema)
    for name, field in schema.model_fields.items():
        if name in ("step", "task"):
            continue
        inner = _inner_table(field.annotation)
        section = next((title for title, shared in SHARED.items() if shared is inner), None)
        if section is not None:
            yield f"{prefix}{name}.*", "table", "", f"See [{section}](#{section.lower()})."
        elif inner is not None:
            yield from _rows(inner, f"{prefix}{name}" + (".#." if _is_list(field.annotation) else "."))
        else:
            yield f"{prefix}{name}", _type(field.annotation), _default(field), meanings.get(name, "")


def _inner_table(annotation: Any) -> type[BaseModel] | None:
    """The class of a table, of a table that may be left out, or of each table of a list."""
    tables = [choice for choice in (annotation, *get_args(annotation)) if _is_table(choice)]
    return tables[0] if tables and get_origin(annotation) is not dict else None


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list)


def _is_table(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel) and not inspect.isabstract(annotation)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(choice) for choice in arguments if choice is not NoneType)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "tables" if _is_table(arguments[1]) or get_origin(arguments[1]) is dict else "table"
    names = {Path: "path", str: "string", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, "table")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, PydanticUndefined, (), {}):
        return ""
    if isinstance(value, tuple) and (len(value) > 3 or any(isinstance(one, BaseModel) for one in value)):
        return f"{len(value)} entries"
    return f"`{json.dumps(value, default=str)}`"


def _summary(schema: type[BaseModel]) -> str:
    text = inspect.cleandoc(schema.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def _attribute_docstrings(schema: type[BaseModel]) -> dict[str, str]:
    """Setting → the string below it in the class, or in the classes that it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not issubclass(owner, Recipe) or owner is Recipe:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                text = " ".join(str(following.value.value).split())
                found[statement.target.id] = text.replace("|", "\\|")
    return found


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
