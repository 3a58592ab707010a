"""The `config.json` that a GGUF file's metadata amounts to.

Whatever would change the mathematics and has no place in that config is refused by name.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint.gguf_names import FLOATS, GGUF_ARCHITECTURES
from camelid.checkpoint.gguf_rope import llama3_scaling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.base.gguf_header import GGUFHeader
    from camelid.checkpoint.gguf_names import GGUFArchitecture, Scaling

_OPTIONAL: Final = {"attention.head_count_kv", "attention.key_length", "rope.freq_base"}
_CHECKED: Final = {"vocab_size", "attention.value_length", "rope.dimension_count"}
_SCALING: Final = {
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
}
_HARMLESS: Final = {"expert_used_count", "tensor_data_layout"}
_TOKEN_IDS: Final = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
SAMPLING: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Key of a `generation_config.json` → GGUF's. All are 32-bit floats but top_k, an i32."""
_END_TOKENS: Final = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_NO_TOKEN: Final = 2**32 - 1
"""How files without a token for a role may say so: −1 in 32 bits (llama.cpp, LLAMA_TOKEN_NULL)."""


def architecture_of(header: GGUFHeader, path: Path) -> GGUFArchitecture:
    """How files of this architecture are read.

    Raises:
        FormatError: the file doesn't say what architecture it holds.
        ConfigError: it holds one that isn't supported.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise FormatError("the file does not name its architecture", where=f"{path}, general.architecture")
    if name not in GGUF_ARCHITECTURES:
        raise ConfigError(
            f"GGUF files of the architecture '{name}' are not supported",
            where=f"{path}, general.architecture",
            hint="supported: " + ", ".join(sorted(GGUF_ARCHITECTURES)) + "; others may open from their hub folder",
        )
    return GGUF_ARCHITECTURES[name]


def config_from_gguf(header: GGUFHeader, path: Path, rope_divisors: Tensor | None) -> dict[str, Any]:
    """The contents of a `config.json`.

    Args:
        header: of the file.
        path: of the file, for messages.
        rope_divisors: `rope_freqs.weight`, fp32 [head_dim / 2], if the file holds it.

    Raises:
        FormatError: a setting is missing, has the wrong type or contradicts the tensors.
        ConfigError: a setting that can't be honoured.
    """
    architecture = architecture_of(header, path)
    metadata = _Settings(header, path)
    config: dict[str, Any] = {"architectures": [architecture.class_name], "model_type": architecture.model_type}
    for key, name in architecture.settings.items():
        if (value := metadata.number(key, required=key not in _OPTIONAL)) is not None:
            if name not in FLOATS and (type(value) is not int or value < 1):
                raise FormatError(f"expected a whole number above 0, not {value!r}", where=metadata.where(key))
            config[name] = value
    if config["num_hidden_layers"] > len(header.tensors):
        raise FormatError(
            f"{config['num_hidden_layers']} layers in a file of {len(header.tensors)} tensors",
            where=metadata.where("block_count"),
        )
    config |= architecture.implied(config)
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config["rope_theta"] = float(config.get("rope_theta", 10_000.0))
    _require_same(metadata, "attention.value_length", config["head_dim"])
    _require_same(metadata, "rope.dimension_count", config["head_dim"])
    for key, expected in architecture.fixed.items():
        _require_same(metadata, key, expected)
    config["vocab_size"] = _vocab_size(header, metadata)
    config["rope_scaling"] = _rope_scaling(metadata, config, rope_divisors, architecture.scalings)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in header.tensors
    config |= {name: token for name, key in _TOKEN_IDS.items() if (token := metadata.token_id(key)) is not None}
    metadata.warn_of_unknown({*architecture.settings, *architecture.fixed, *_CHECKED, *_SCALING, *_HARMLESS})
    return config


def generation_config_from_gguf(header: GGUFHeader, path: Path) -> dict[str, Any]:
    """The contents of a `generation_config.json`: where text begins, all that ends a reply, and how to sample."""
    metadata = _Settings(header, path)
    settings: dict[str, Any] = {}
    if (bos := metadata.token_id("tokenizer.ggml.bos_token_id")) is not None:
        settings["bos_token_id"] = bos
    ends = [token for key in _END_TOKENS if (token := metadata.token_id(key)) is not None]
    if ends:
        settings["eos_token_id"] = list(dict.fromkeys(ends))
    sampling = {name: value for name, key in SAMPLING.items() if (value := metadata.sampling(key)) is not None}
    if sampling.keys() - {"repetition_penalty"}:
        settings["do_sample"] = True
    return settings | sampling


class _Settings:
    """The metadata of one architecture, read strictly."""

    def __init__(self, header: GGUFHeader, path: Path) -> None:
        self.metadata = header.metadata
        self.path = path
        self.prefix = f"{header.metadata['general.architecture']}."

    def number(self, key: str, *, required: bool = False) -> int | float | None:
        """A setting that is one number for the whole model; float32 as people write it (1e-05)."""
        value = self.metadata.get(self.prefix + key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, np.ndarray):
            raise ConfigError("layers of different shapes are not supported", where=self.where(key))
        if value is None and required:
            raise FormatError(f"the setting '{self.prefix}{key}' is missing", where=self.path)
        if value is not None and type(value) not in (int, float):
            raise FormatError(f"expected a number, not {value!r}", where=self.where(key))
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def sampling(self, key: str) -> int | float | None:
        """A number of the section on sampling; float32 as people write it."""
        value = self.metadata.get(key)
        if value is not None and type(value) not in (int, float):
            raise FormatError(f"expected a number, not {value!r}", where=f"{self.path}, {key}")
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def text(self, key: str) -> str | None:
        value = self.metadata.get(self.prefix + key)
        if value is not None and not isinstance(value, str):
            raise FormatError(f"expected a text, not {value!r}", where=self.where(key))
        return value

    def token_id(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if value == _NO_TOKEN:
            return None
        if value is not None and (type(value) is not int or value < 0):
            raise FormatError(f"expected a token id, not {value!r}", where=f"{self.path}, {key}")
        return value

    def warn_of_unknown(self, known: set[str]) -> None:
        for key in self.metadata:
            if key.startswith(self.prefix) and key.removeprefix(self.prefix) not in known:
                warnings.warn(f"{self.path}: ignoring the unknown setting '{key}'", UserWarning, stacklevel=2)

    def where(self, key: str) -> str:
        return f"{self.path}, {self.prefix}{key}"


def _require_same(metadata: _Settings, key: str, expected: int) -> None:
    value = metadata.number(key)
    if value is not None and value != expected:
        raise ConfigError(f"{value} is not supported where only {expected} is", where=metadata.where(key))


def _vocab_size(header: GGUFHeader, metadata: _Settings) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(
            "the file holds no token embedding",
            where=metadata.path,
            hint="it may be a vocabulary without a model, or one part of a split model",
        )
    stated = metadata.number("vocab_size")
    if stated is not None and stated != embedding.shape[0]:
        raise FormatError(
            f"{stated} contradicts the {embedding.shape[0]} embeddings", where=metadata.where("vocab_size")
        )
    return embedding.shape[0]


def _rope_scaling(
    metadata: _Settings, config: Mapping[str, Any], divisors: Tensor | None, released: Sequence[Scaling]
) -> dict[str, Any] | None:
    """`rope_scaling` of the config: by the file's divisors, or by its scaling settings; both at once make no sense."""
    kind = metadata.text("rope.scaling.type") or "none"
    factor = metadata.number("rope.scaling.factor")
    if old_factor := metadata.number("rope.scale_linear"):
        kind, factor = "linear", old_factor
    if kind == "none" or (kind == "linear" and factor == 1):
        if divisors is None:
            return None
        where = f"{metadata.path}, rope_freqs.weight"
        return llama3_scaling(divisors, config["rope_theta"], config["head_dim"], released, where)
    if divisors is not None or kind not in ("linear", "yarn") or factor is None:
        raise ConfigError(f"the rope scaling '{kind}' is not supported as stored", where=metadata.where("rope.scaling"))
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn":
        original = metadata.number("rope.scaling.original_context_length", required=True)
        scaling["original_max_position_embeddings"] = original
    return scaling
