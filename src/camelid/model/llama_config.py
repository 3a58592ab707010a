"""The shape of a Llama: LLaMA 1, Llama 2, Code Llama, Llama 3 to 3.3 text, and whatever else has their layout.

Apart from `camelid.model.llama` so that shapes can be listed and sized without importing torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from camelid.base.errors import ConfigError
from camelid.model.config import (
    BYTES_PER_ELEMENT,
    ModelConfig,
    refuse_other_values,
    require_count,
    require_flag,
    require_number,
    warn_of_unknown,
)
from camelid.model.rope import RopeParameters, read_rope

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """The shape of a Llama; defaults are those of transformers' `LlamaConfig`.

    Raises:
        ConfigError: a value that no Llama can have.
    """

    model_type: ClassVar[str] = "llama"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = cast("int", None)
    """Left out: as many as query heads (multi-head attention); 1 is multi-query attention."""
    head_dim: int = cast("int", None)
    """Left out: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    mlp_bias: bool = False
    """Biases on the three projections of the feed-forward layer."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            require_count(name, getattr(self, name))
        self._derive("num_key_value_heads", self.num_attention_heads)
        was_derived = self._derive("head_dim", self.hidden_size // self.num_attention_heads)
        if was_derived and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
                where="hidden_size",
                hint="a model with other heads states its head_dim",
            )
        for name in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
            require_count(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads evenly",
                where="num_key_value_heads",
            )
        if self.head_dim % 2:
            raise ConfigError(f"rotary positions need an even head_dim, not {self.head_dim}", where="head_dim")
        require_number("rms_norm_eps", self.rms_norm_eps, above=0, at_most=1)
        require_number("initializer_range", self.initializer_range, above=0, at_most=10)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            require_flag(name, getattr(self, name))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            _require_token_ids(name, getattr(self, name), many=name == "eos_token_id")
        if not isinstance(self.dtype, str) or self.dtype not in BYTES_PER_ELEMENT:
            raise ConfigError(f"dtype must be one of {', '.join(BYTES_PER_ELEMENT)}, not {self.dtype!r}", where="dtype")

    def _derive(self, name: str, value: int) -> bool:
        """Give a field that was left out its value; whether it was."""
        left_out = getattr(self, name) is None
        if left_out:
            object.__setattr__(self, name, value)
        return left_out

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`, old and new spellings; null means left out.

        A key that is not known is warned about; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour, or a size that is missing.
        """
        refuse_other_values(settings, HONOURED)
        if settings.get("quantization_config") is not None:
            raise ConfigError(
                "the weights are quantised in a way that is not supported here",
                where="quantization_config",
                hint="take the model's original checkpoint, or a GGUF file of it",
            )
        if settings.get("attention_dropout"):
            warnings.warn("config: attention_dropout is not applied in training", UserWarning, stacklevel=2)
        names = {f.name for f in fields(cls)}
        warn_of_unknown(settings, names | HONOURED.keys() | IGNORED)
        values = {name: settings[name] for name in names if settings.get(name) is not None}
        for name in SIZES_WITHOUT_DEFAULT - values.keys():
            raise ConfigError(f"the config has no {name}", where=name)
        if isinstance(eos := values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(eos)
        if isinstance(pad := values.get("pad_token_id"), int) and pad < 0:
            del values["pad_token_id"]
        values["dtype"] = values.get("dtype") or settings.get("torch_dtype") or "float32"
        values["rope_parameters"] = read_rope(settings)
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers, vLLM and llama.cpp's converter read."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rope_parameters", "dtype")}
        if isinstance(self.eos_token_id, tuple):
            settings["eos_token_id"] = list(self.eos_token_id)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.model_type,
            **settings,
            **self.rope_parameters.to_hf(),
            "hidden_act": "silu",
            "torch_dtype": self.dtype,
        }

    @property
    def num_parameters(self) -> int:
        """Embedding, layers, final norm, and the output projection unless it is tied."""
        hidden, width, vocab = self.hidden_size, self.intermediate_size, self.vocab_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * queries + 2 * hidden * keys
        feed_forward = 3 * hidden * width
        if self.attention_bias:
            attention += queries + 2 * keys + hidden
        if self.mlp_bias:
            feed_forward += 2 * width + hidden
        layer = attention + feed_forward + 2 * hidden
        return vocab * hidden * (1 if self.tie_word_embeddings else 2) + self.num_hidden_layers * layer + hidden


SIZES_WITHOUT_DEFAULT = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
}

HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "layer_types": (),
    "no_rope_layers": (),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "alibi": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_multiplier": (),
    "logits_scaling": (1.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "is_encoder_decoder": (False,),
    "cross_attention_layers": (),
}
"""Keys that change the mathematics in models of Llama's layout → the values that leave it as it is here."""

IGNORED = {
    # read elsewhere in this file
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
    "original_max_position_embeddings",
    "quantization_config",
    "attention_dropout",
    # how a library stores, names or runs the model
    "architectures",
    "transformers_version",
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_from_model_config",
    "_commit_hash",
    "use_cache",
    "pretraining_tp",
    "is_llama_config",
    "is_decoder",
    "return_dict",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "torchscript",
    "use_bfloat16",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "unsloth_version",
    "transformers.js_config",
    # other heads and tasks
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "decoder_start_token_id",
    "sep_token_id",
    "finetuning_task",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "tokenizer_class",
    "prefix",
    "pruned_heads",
    # defaults of generation, which belong to generation_config.json
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "top_k",
    "top_p",
    "typical_p",
}
"""Keys of hub configs that leave the mathematics alone."""


def _require_token_ids(name: str, value: object, *, many: bool) -> None:
    ids = value if many and isinstance(value, tuple) else (value,)
    if value is not None and not all(type(i) is int and i >= 0 for i in ids):
        raise ConfigError(f"{name} must be a token id{' or a list of them' if many else ''}, not {value!r}", where=name)
