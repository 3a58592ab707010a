"""What a GGUF file says about a model, from its config and generation settings: the inverse of `gguf_config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from camelid.base.errors import ConfigError
from camelid.checkpoint.gguf_config import SAMPLING
from camelid.checkpoint.gguf_names import FLOATS, GGUF_ARCHITECTURES
from camelid.model.rope import LinearRope, Llama3Rope, RopeParameters, YarnRope, read_rope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.checkpoint.gguf_container import GGUFValue
    from camelid.checkpoint.gguf_names import GGUFArchitecture
    from camelid.model.config import ModelConfig
    from camelid.tokenizer import Tokenizer

_NO_READER: Final = ": llama.cpp, whose format it is, has no such architecture"
_REASONS: Final = {
    "opt": _NO_READER,
    "mllama": f"{_NO_READER} and no names for layers that attend to images",
}
_END_OF_MESSAGE: Final = "<|eom_id|>"
"""Llama 3.1's token behind a message that waits for a tool; GGUF has a key of its own for it."""


def architecture_named(model_type: str, where: object) -> tuple[str, GGUFArchitecture]:
    """GGUF's name of a `model_type`, and how its files are laid out.

    Raises:
        ConfigError: GGUF files of it are not written.
    """
    for name, architecture in GGUF_ARCHITECTURES.items():
        if architecture.model_type == model_type:
            return name, architecture
    known = ", ".join(sorted(architecture.model_type for architecture in GGUF_ARCHITECTURES.values()))
    raise ConfigError(
        f"models of the type '{model_type}' are not written as GGUF{_REASONS.get(model_type, '')}",
        where=where,
        hint=f"write a Hugging Face folder; as GGUF there are those of the type {known}",
    )


def model_metadata(config: ModelConfig, where: object) -> dict[str, GGUFValue]:
    """The keys of the architecture: sizes and rotary settings.

    Raises:
        ConfigError: the model has something that GGUF has no key for.
    """
    name, architecture = architecture_named(config.model_type, where)
    settings = config.to_hf()
    metadata: dict[str, GGUFValue] = {"general.architecture": name}
    for key, setting in architecture.settings.items():
        value = settings[setting]
        metadata[f"{name}.{key}"] = float(value) if setting in FLOATS else int(value)
    for setting, taken in architecture.implied(settings).items():
        if settings[setting] != taken:
            raise ConfigError(
                f"GGUF's '{name}' has no place for {setting} = {settings[setting]}: its readers take {taken}",
                where=where,
                hint="write a Hugging Face folder",
            )
    metadata[f"{name}.attention.value_length"] = config.head_dim
    metadata[f"{name}.rope.dimension_count"] = config.head_dim
    metadata[f"{name}.vocab_size"] = config.vocab_size
    scaling = _rope_scaling(read_rope(settings), where)
    return metadata | {f"{name}.rope.scaling.{key}": value for key, value in scaling.items()}


def rope_divisors(config: ModelConfig) -> Tensor | None:
    """What Llama 3's scaling divides each frequency by, fp32 [head_dim / 2]; None for every other kind."""
    rope = read_rope(config.to_hf())
    if not isinstance(rope, Llama3Rope):
        return None
    plain = RopeParameters(rope_theta=rope.rope_theta).frequencies(config.head_dim)
    return plain / rope.frequencies(config.head_dim)


def _rope_scaling(rope: RopeParameters, where: object) -> dict[str, GGUFValue]:
    if isinstance(rope, LinearRope):
        return {"type": "linear", "factor": float(rope.factor)}
    if isinstance(rope, YarnRope):
        original = rope.original_max_position_embeddings
        plain = YarnRope(rope_theta=rope.rope_theta, factor=rope.factor, original_max_position_embeddings=original)
        if rope != plain:
            raise ConfigError(
                "this YaRN scaling has settings that GGUF files do not carry",
                where=f"{where}, rope_scaling",
                hint="only factor and original_max_position_embeddings can be other than their defaults",
            )
        return {"type": "yarn", "factor": float(rope.factor), "original_context_length": original}
    return {}  # Llama 3's is a tensor


def generation_metadata(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    generation_config: Mapping[str, Any],
    where: Path,
) -> dict[str, GGUFValue]:
    """Where text begins, which tokens end a reply, and how it is sampled.

    GGUF has three keys for ends: of a text, of a turn and of a message. Readers stop at each of them.

    Raises:
        ConfigError: a reply has more than three ends, or a setting has the wrong type.
    """
    metadata: dict[str, GGUFValue] = {}
    special = tokenizer.special if tokenizer is not None else None
    bos = special.bos if special else generation_config.get("bos_token_id", config.bos_token_id)
    pad = special.pad if special and special.pad is not None else config.pad_token_id
    for role, token_id in (("bos", bos), ("padding", pad), ("unknown", special.unk if special else None)):
        if token_id is not None:
            metadata[f"tokenizer.ggml.{role}_token_id"] = int(token_id)
    ends = _token_ids(generation_config.get("eos_token_id", config.eos_token_id), where)
    own_end = special.eos if special else None
    if own_end is not None:
        ends = [own_end, *(token_id for token_id in ends if token_id != own_end)]
    metadata |= _end_tokens(ends, special.ids if special else {}, where)
    is_greedy = generation_config.get("do_sample") is False
    for setting, key in SAMPLING.items():
        value = generation_config.get(setting)
        if value is not None and not (is_greedy and setting != "repetition_penalty"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{setting} is {value!r}, no number", where=f"{where}, generation_config.json")
            metadata[key] = np.int32(value) if setting == "top_k" else float(value)
    return metadata


def _end_tokens(ends: Sequence[int], spelled: Mapping[str, int], where: Path) -> dict[str, GGUFValue]:
    message_end = spelled.get(_END_OF_MESSAGE)
    metadata: dict[str, GGUFValue] = {}
    if message_end in ends[1:]:
        metadata["tokenizer.ggml.eom_token_id"] = int(message_end)  # type: ignore[arg-type]
        ends = [token_id for token_id in ends if token_id != message_end]
    if len(ends) > 2:
        raise ConfigError(
            f"GGUF has no key for so many tokens that end a reply: {', '.join(map(str, ends))}",
            where=f"{where}, eos_token_id",
            hint="keep those that this model really writes",
        )
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return metadata | dict(zip(names, ends, strict=False))


def _token_ids(value: object, where: Path) -> list[int]:
    ids: list[Any] = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ConfigError(f"{value!r} are no token ids", where=f"{where}, eos_token_id")
    return ids
