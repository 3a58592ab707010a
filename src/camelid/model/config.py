"""What every model configuration is, and how a `config.json` is read without believing it. Needs no torch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from camelid.base.errors import ConfigError, did_you_mean

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

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of all weights in a dense dtype, without activations and cache."""
        return self.num_parameters * BYTES_PER_ELEMENT[dtype]

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that one token leaves in the cache: its keys and values in all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return self.kv_elements_per_token * BYTES_PER_ELEMENT[dtype]


def require_count(name: str, value: object) -> None:
    """Refuse what is not a whole number of at least 1 and of a size that models have.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not int or not 1 <= value <= LARGEST[name]:
        raise ConfigError(f"{name} must be a whole number from 1 to {LARGEST[name]}, not {value!r}", where=name)


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
