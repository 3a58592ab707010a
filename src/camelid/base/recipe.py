"""Recipes: strict TOML settings.

    class TokenizerRecipe(Recipe):
        vocab_size: int = 32_000

    recipe = load_recipe(TokenizerRecipe, Path("recipes/tokenizer.toml"), ["vocab_size=8192"])

An unknown key is an error that names the nearest known one; nothing is converted silently.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from camelid.base.errors import RecipeError, did_you_mean
from camelid.base.files import existing_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Recipe(BaseModel):
    """The base of every recipe and of every table inside one: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


R = TypeVar("R", bound=Recipe)


def load_recipe(schema: type[R], path: Path | None, overrides: Sequence[str] = ()) -> R:
    """Read a TOML file, apply `a.b=value` overrides and validate against the schema.

    Args:
        schema: the recipe's class.
        path: the file; None starts from the schema's defaults.
        overrides: as given to `--set`; a value is TOML (`1e-4`, `true`, `["a"]`), or else taken as a bare string.

    Raises:
        RecipeError: the file is no TOML, a key is unknown, a value has the wrong type or an impossible value.
        NotFoundError: there is no such file.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = tomllib.loads(existing_file(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"not a TOML file: {error}", where=path) from error
    for override in overrides:
        _apply(settings, override)
    return validated(schema, settings, path or "recipe")


def validated(schema: type[R], settings: Mapping[str, Any], where: object, table: str = "") -> R:
    """Settings as read from TOML or JSON, checked against a recipe's class.

    Args:
        schema: the recipe's class.
        settings: by key.
        where: the file or the part of it that they come from, for messages.
        table: the dotted name of the table that they are, which messages put before the key.

    Raises:
        RecipeError: a key is unknown, a value has the wrong type or an impossible value; says so of `where`.
    """
    try:
        # TOML has no Path and no tuple: strict validation in JSON mode accepts their plain spellings.
        return schema.model_validate_json(_to_json(settings))
    except ValidationError as error:
        raise _explain(schema, error, where, table) from error


def _apply(settings: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"cannot read the override '{override}'", where="--set", hint="write it as --set a.b=value")
    *tables, leaf = key.strip().split(".")
    table = settings
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"'{name}' in '{key.strip()}' is a value, not a table", where="--set")
        table = inner
    table[leaf] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _to_json(settings: Mapping[str, Any]) -> str:
    import json

    return json.dumps(settings, default=str)


def _explain(schema: type[BaseModel], error: ValidationError, where: object, table: str) -> RecipeError:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([table, *location] if table else location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        return RecipeError(f"unknown key '{key}'{more}", where=where, hint=did_you_mean(location[-1], known))
    if first["type"] == "value_error":  # a recipe's own sentence about a whole table, which needs no repeating
        sentence = f"{first['ctx']['error']}{more}"
        return RecipeError(f"'{key}': {sentence}" if key else sentence, where=where)
    message = first["msg"][0].lower() + first["msg"][1:]
    got = "" if first["type"] == "missing" else f", not {first['input']!r}"
    return RecipeError(f"'{key}': {message}{got}{more}", where=where)


def _known_keys(schema: type[BaseModel], tables: Sequence[str]) -> list[str]:
    """The field names of the table that `tables` leads to, through nested models, lists and optionals."""
    for name in tables:
        if name.isdigit() or name not in schema.model_fields:
            continue
        annotation = schema.model_fields[name].annotation
        nested = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if nested:
            schema = nested[0]
    return list(schema.model_fields)
