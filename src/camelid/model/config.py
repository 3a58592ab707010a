"""What every model configuration is, and how a `config.json` is read without believing it. Needs no torch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from camelid.base.errors import ConfigError, did_you_mean
from camelid.model.harmless_keys import HARMLESS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**14,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "max_position_embeddings": 2**31,
    "original_max_position_embeddings": 2**31,
}
"""Sizes that no model has: past them a file is broken, or means to exhaust the memory."""

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


class ModelConfig(ABC):
    """The shape of a model. Field names are Hugging Face's; each architecture has its own frozen dataclass."""

    model_type: ClassVar[str]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: int | tuple[int, ...] | None
    pad_token_id: int | None
    dtype: str
    """The dtype that the weights were saved in; a key of `BYTES_PER_ELEMENT`."""

    @classmethod
    @abstractmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`, old and new spellings.

        A key that is not known is warned about once; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour.
        """

    @abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers and vLLM read."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Exact count in closed form, tied weights once; equals what the module holds (`camelid.model.sizes`)."""

    @property
    def num_active_parameters(self) -> int:
        """Those that one token is computed with: all, unless there are experts to choose from."""
        return self.num_parameters

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked as a new config is.

        Raises:
            ConfigError: as for a new config.
        """
        return replace(self, **changes)  # type: ignore[type-var]

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of all weights in a dense dtype, without activations and cache."""
        return self.num_parameters * BYTES_PER_ELEMENT[dtype]

    @property
    def num_embeddings(self) -> int:
        """Token ids that the model reads; more than it writes, where some stand for what is no text."""
        return self.vocab_size

    @property
    def num_cached_layers(self) -> int:
        """Layers that keep keys and values of the tokens, numbered from 0 when they attend."""
        return self.num_hidden_layers

    @property
    def image_token_id(self) -> int | None:
        """The token that stands for an image in a prompt; None: the model reads text only."""
        return None

    @property
    def kv_elements_per_image(self) -> int:
        """Numbers that an image leaves for the layers that attend to it."""
        return 0

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that one token leaves in the cache: its keys and values in all layers that keep them."""
        return 2 * self.num_cached_layers * self.num_key_value_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return self.kv_elements_per_token * BYTES_PER_ELEMENT[dtype]


def read_fields(
    config_class: type[ModelConfig],
    settings: Mapping[str, Any],
    *,
    honoured: Mapping[str, Collection[object]],
    ignored: Collection[str],
    required: Collection[str],
) -> dict[str, Any]:
    """The fields of a config that a `config.json` states, strictly; null means left out.

    Args:
        config_class: a dataclass.
        settings: the contents of the `config.json`.
        honoured: key that would change the mathematics → the values that leave it as it is here.
        ignored: keys that are harmless or read by the caller, beside `HARMLESS`.
        required: fields that must be stated.

    Raises:
        ConfigError: a value that changes the mathematics, quantised weights, or a required field is missing.
    """
    refuse_other_values(settings, honoured)
    if settings.get("quantization_config") is not None:
        raise ConfigError(
            "the weights are quantised in a way that is not supported here",
            where="quantization_config",
            hint="take the model's original checkpoint, or a GGUF file of it",
        )
    if settings.get("attention_dropout"):
        warnings.warn("config: attention_dropout is not applied in training", UserWarning, stacklevel=3)
    names = {f.name for f in fields(config_class) if f.init}  # type: ignore[arg-type]
    warn_of_unknown(settings, {*names, *honoured, *ignored, *HARMLESS})
    values = {name: settings[name] for name in names if settings.get(name) is not None}
    for name in sorted(set(required) - values.keys()):
        raise ConfigError(f"the config has no {name}", where=name)
    if isinstance(eos := values.get("eos_token_id"), list):
        values["eos_token_id"] = tuple(eos)
    if isinstance(pad := values.get("pad_token_id"), int) and pad < 0:
        del values["pad_token_id"]
    values["dtype"] = values.get("dtype") or settings.get("torch_dtype") or "float32"
    return values


def written_fields(config: ModelConfig, *, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The fields as a `config.json` has them: tuples as lists, the dtype under its older name."""
    names = [f.name for f in fields(config) if f.init and f.name not in {*leave_out, "dtype"}]  # type: ignore[arg-type]
    values = {name: getattr(config, name) for name in names}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {**settings, "torch_dtype": config.dtype}


def derive(config: ModelConfig, name: str, value: object) -> bool:
    """Give a field that was left out (None) its value; whether it was."""
    left_out = getattr(config, name) is None
    if left_out:
        object.__setattr__(config, name, value)
    return left_out


def derive_heads(config: ModelConfig) -> None:
    """Fill in `num_key_value_heads` and `head_dim` where they were left out (None), and check all three.

    Raises:
        ConfigError: the heads do not share evenly, or have no pairs of dimensions to rotate.
    """
    require_count("num_attention_heads", config.num_attention_heads)
    derive(config, "num_key_value_heads", config.num_attention_heads)
    was_derived = derive(config, "head_dim", config.hidden_size // config.num_attention_heads)
    if was_derived and config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}",
            where="hidden_size",
            hint="a model with other heads states its head_dim",
        )
    for name in ("num_key_value_heads", "head_dim"):
        require_count(name, getattr(config, name))
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"{config.num_attention_heads} heads cannot share {config.num_key_value_heads} key/value heads evenly",
            where="num_key_value_heads",
        )
    if config.head_dim % 2:
        raise ConfigError(f"rotary positions need an even head_dim, not {config.head_dim}", where="head_dim")


def require_common(config: ModelConfig) -> None:
    """Check the fields that every config has beside its sizes: flags, token ids and dtype.

    Raises:
        ConfigError: a value that no model can have.
    """
    require_flag("tie_word_embeddings", config.tie_word_embeddings)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _require_token_ids(name, getattr(config, name), many=name == "eos_token_id")
    if not isinstance(config.dtype, str) or config.dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype must be one of {', '.join(BYTES_PER_ELEMENT)}, not {config.dtype!r}", where="dtype")


def require_count(name: str, value: object, *, largest: int | None = None) -> None:
    """Refuse what is not a whole number of at least 1 and of a size that models have.

    Args:
        name: the field.
        value: its value.
        largest: what it may be at most; None: what `LARGEST` says.

    Raises:
        ConfigError: it is not.
    """
    largest = LARGEST[name] if largest is None else largest
    if type(value) is not int or not 1 <= value <= largest:
        raise ConfigError(f"{name} must be a whole number from 1 to {largest}, not {value!r}", where=name)


def require_number(name: str, value: object, *, above: float, at_most: float) -> None:
    """Refuse what is not a number in (above, at_most].

    Raises:
        ConfigError: it is not.
    """
    if type(value) not in (int, float) or not above < value <= at_most:  # type: ignore[operator]
        raise ConfigError(f"{name} must be a number above {above:g} and at most {at_most:g}, not {value!r}", where=name)


def require_flag(name: str, value: object) -> None:
    """Refuse what is not true or false.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not bool:
        raise ConfigError(f"{name} must be true or false, not {value!r}", where=name)


def refuse_other_values(settings: Mapping[str, Any], honoured: Mapping[str, Collection[object]]) -> None:
    """Refuse a key whose value would change the mathematics in a way that the architecture does not have.

    Args:
        settings: the contents of a `config.json`; an absent key and null are harmless.
        honoured: key → the values that leave the mathematics as it is here.

    Raises:
        ConfigError: another value.
    """
    for name, values in honoured.items():
        value = settings.get(name)
        if value is not None and value not in values:
            expected = " or ".join(repr(v) for v in values) or "nothing"
            raise ConfigError(
                f"{name} = {value!r} changes the mathematics and is not supported; only {expected} is",
                where=name,
                hint="the model may belong to another architecture that shares this layout",
            )


def warn_of_unknown(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Warn of every key that is neither known nor known to be harmless."""
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known) or ""
            suggestion = f"; {hint}" if hint.startswith("did you mean") else ""
            warnings.warn(f"config: ignoring the unknown key '{name}'{suggestion}", UserWarning, stacklevel=3)


def _require_token_ids(name: str, value: object, *, many: bool) -> None:
    ids = value if many and isinstance(value, tuple) else (value,)
    if value is not None and not all(type(i) is int and i >= 0 for i in ids):
        raise ConfigError(f"{name} must be a token id{' or a list of them' if many else ''}, not {value!r}", where=name)
