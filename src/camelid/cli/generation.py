"""The options of commands that generate: how tokens are chosen, what form a reply has, what the engine does.

Fields are named as in `SamplingParams`, which says what the values mean and which are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camelid.base.errors import CamelidError, NotFoundError, SamplingError
from camelid.base.files import existing_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camelid.llm import LLM


def _option(group: str, help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=group, metavar=metavar)


REPLY, CHOICE, PENALTIES, ENGINE = "The reply", "How tokens are chosen", "Penalties and bans", "Model and engine"


@dataclass(frozen=True)
class ReplyOptions:
    """How long a reply is, what ends it and what form it has."""

    max_tokens: Annotated[int, _option(REPLY, "Longest reply.")] = 512
    min_tokens: Annotated[int | None, _option(REPLY, "Shortest reply.")] = None
    stop: Annotated[
        list[str] | None, _option(REPLY, "A text that ends the reply; may be given again.", metavar="TEXT")
    ] = None
    n: Annotated[int | None, _option(REPLY, "So many replies to the one --prompt.")] = None
    json_schema: Annotated[
        str | None, _option(REPLY, "JSON that this schema describes: a file, or the schema.", metavar="FILE|TEXT")
    ] = None
    regex: Annotated[str | None, _option(REPLY, "A reply that matches this expression as a whole.", metavar="TEXT")] = (
        None
    )
    grammar: Annotated[
        Path | None, _option(REPLY, "A reply that follows this file's grammar, Lark's or GBNF.", metavar="FILE")
    ] = None
    choice: Annotated[
        list[str] | None, _option(REPLY, "One of these texts; give it once for each.", metavar="TEXT")
    ] = None


@dataclass(frozen=True)
class ChoiceOptions:
    """The distribution that tokens are drawn from. What is left out is what the model recommends."""

    temperature: Annotated[
        float | None, _option(CHOICE, "0 is greedy; default of these: what the model recommends.")
    ] = None
    top_k: Annotated[int | None, _option(CHOICE, "Sample from so many likeliest tokens; 0: all.")] = None
    top_p: Annotated[float | None, _option(CHOICE, "Sample from the likeliest tokens of this total.")] = None
    min_p: Annotated[float | None, _option(CHOICE, "Drop tokens below this share of the likeliest's chance.")] = None
    typical_p: Annotated[float | None, _option(CHOICE, "Sample tokens of average surprise, of this total.")] = None
    top_n_sigma: Annotated[float | None, _option(CHOICE, "Drop scores so many standard deviations below the best.")] = (
        None
    )
    xtc_probability: Annotated[float | None, _option(CHOICE, "How often XTC drops the likeliest tokens but one.")] = (
        None
    )
    xtc_threshold: Annotated[float | None, _option(CHOICE, "The chance that is likely to XTC.")] = None
    mirostat_tau: Annotated[
        float | None, _option(CHOICE, "Mirostat 2 in place of all filters, at so many bits of surprise.")
    ] = None
    mirostat_eta: Annotated[float | None, _option(CHOICE, "How quickly mirostat follows.")] = None
    seed: Annotated[int | None, _option(CHOICE, "Makes the replies reproducible.")] = None


@dataclass(frozen=True)
class PenaltyOptions:
    """What makes tokens less likely, or impossible."""

    repetition_penalty: Annotated[
        float | None, _option(PENALTIES, "Above 1: fewer tokens that prompt or reply have.")
    ] = None
    presence_penalty: Annotated[float | None, _option(PENALTIES, "Off the score of tokens that the reply has.")] = None
    frequency_penalty: Annotated[float | None, _option(PENALTIES, "The same, for each time that it has them.")] = None
    dry_multiplier: Annotated[float | None, _option(PENALTIES, "Strength of DRY, against repeated sequences.")] = None
    dry_base: Annotated[float | None, _option(PENALTIES, "DRY's growth with each repeated token.")] = None
    dry_allowed_length: Annotated[int | None, _option(PENALTIES, "Repeats shorter than this are free of DRY.")] = None
    dry_range: Annotated[int | None, _option(PENALTIES, "DRY looks at so many last tokens; 0: all.")] = None
    banned_strings: Annotated[
        list[str] | None,
        _option(PENALTIES, "A text that must not come up; may be given again.", "--ban", metavar="TEXT"),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        _option(PENALTIES, "Add to a token's score; may be given again.", metavar="ID=NUMBER"),
    ] = None


@dataclass(frozen=True)
class EngineOptions:
    """What the model runs on, with what beside it."""

    adapter: Annotated[
        list[str] | None,
        _option(ENGINE, "A LoRA adapter's folder; the first of several answers first.", metavar="PATH[=NAME]"),
    ] = None
    draft: Annotated[
        str | None, _option(ENGINE, "A small model of the same tokens, which guesses ahead.", metavar="MODEL")
    ] = None
    draft_tokens: Annotated[
        int | None, _option(ENGINE, "Guesses per step; without --draft from what was said before.")
    ] = None
    chat_format: Annotated[
        str | None, _option(ENGINE, "llama2, llama3 or chatml; default: the one that the model came with.")
    ] = None
    cache_format: Annotated[str, _option(ENGINE, "exact, or q8 for a quarter of fp32's cache.")] = "exact"
    context: Annotated[int | None, _option(ENGINE, "Tokens of a conversation; default: the model's.")] = None
    device: Annotated[str | None, _option(ENGINE, "cpu, cuda, …; default: the best present.")] = None
    dtype: Annotated[str | None, _option(ENGINE, "float32, bfloat16 or float16; default: what suits.")] = None


def sampling_settings(*groups: ReplyOptions | ChoiceOptions | PenaltyOptions) -> dict[str, Any]:
    """The fields of `SamplingParams` that were given, checked.

    Raises:
        SamplingError: an impossible value.
        NotFoundError: the file of a grammar or a schema is missing.
    """
    from camelid.llm import sampling_params

    stated = {field.name: getattr(group, field.name) for group in groups for field in fields(group)}
    given: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    if "json_schema" in given:
        given["json_schema"] = _schema(given["json_schema"])
    if "grammar" in given:
        given["grammar"] = _text_of(given["grammar"])
    if "logit_bias" in given:
        given["logit_bias"] = [_bias(text) for text in given["logit_bias"]]
    sampling_params(given)
    return given


def with_recommended(given: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, and for the rest what is recommended; mirostat takes the place of filters."""
    if given.get("mirostat_tau"):
        from camelid.engine.params import FILTERS

        recommended = {name: value for name, value in recommended.items() if name not in FILTERS}
    return {**recommended, **given}


def open_llm(model: str, options: EngineOptions, **engine_options: Any) -> LLM:
    """The model, its draft and its adapters.

    Args:
        model: a path or a name.
        options: as given.
        engine_options: further arguments of the engine.

    Raises:
        CamelidError: what `camelid.load` raises; a draft model of other tokens; an adapter that does not fit.
    """
    from camelid.llm import load
    from camelid.model.lora import LoraAdapter

    adapters = {name: path for path, name in map(_adapter, options.adapter or [])}
    if len(adapters) < len(options.adapter or []):
        raise CamelidError("two adapters have one name", where="--adapter", hint="name one: --adapter PATH=NAME")
    given = {"num_drafts": options.draft_tokens, "max_context": options.context}
    engine_options |= {name: value for name, value in given.items() if value is not None}
    if options.draft is not None:
        draft = load(options.draft, device=options.device, dtype=options.dtype)
        engine_options["draft_model"] = draft.model
    engine_options |= {"cache_format": options.cache_format, "chat_format": options.chat_format}
    llm = load(model, device=options.device, dtype=options.dtype, **engine_options)
    if options.draft is not None and not _same_tokens(llm, draft):
        raise CamelidError(
            f"{options.draft} has other tokens than {model} and cannot guess for it",
            where="--draft",
            hint="take a smaller model of the same family, or --draft-tokens alone",
        )
    for name, path in adapters.items():
        llm.engine.add_adapter(name, LoraAdapter.open(path))
    return llm


def _adapter(text: str) -> tuple[Path, str]:
    """Folder and name of an adapter; the folder's own name unless one is given."""
    path, name = Path(text), ""
    if not path.exists() and "=" in text:
        before, _, name = text.rpartition("=")
        path = Path(before)
    if not path.is_dir():
        raise NotFoundError("there is no such adapter", where=path, hint="an adapter is a folder, as PEFT writes it")
    return path, name or path.resolve().name


def _same_tokens(one: LLM, other: LLM) -> bool:
    first, second = one.tokenizer, other.tokenizer
    if first.vocab_size != second.vocab_size or first.special.ids != second.special.ids:
        return False
    return all(first.token_bytes(i) == second.token_bytes(i) for i in range(first.vocab_size))


def _schema(text: str) -> str:
    """The schema, or the contents of its file."""
    if text.lstrip().startswith(("{", "true", "false")):
        return text
    try:
        return _text_of(Path(text))
    except NotFoundError as error:
        raise NotFoundError(error.what, where=error.where, hint='a schema that is no file starts with "{"') from error


def _text_of(path: Path) -> str:
    try:
        return existing_file(path).read_text(encoding="utf-8")
    except ValueError as error:
        raise SamplingError(f"this is no UTF-8 text: {error}", where=path) from error


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise SamplingError(
            f"a bias is a token's id and a number, not '{text}'",
            where="--logit-bias",
            hint="for instance 42=-3.5; `camelid tokenizer encode` tells the ids",
        ) from None
