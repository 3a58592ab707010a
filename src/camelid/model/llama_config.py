"""The shape of a Llama: LLaMA 1, Llama 2, Code Llama, Llama 3 to 3.3 text, and whatever else has their layout.

Apart from `camelid.model.llama` so that shapes can be listed and sized without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from camelid.model.config import (
    ModelConfig,
    derive_heads,
    read_fields,
    require_common,
    require_count,
    require_flag,
    require_number,
    written_fields,
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
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            require_count(name, getattr(self, name))
        derive_heads(self)
        require_number("rms_norm_eps", self.rms_norm_eps, above=0, at_most=1)
        require_number("initializer_range", self.initializer_range, above=0, at_most=10)
        for name in ("attention_bias", "mlp_bias"):
            require_flag(name, getattr(self, name))
        require_common(self)

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`, old and new spellings; null means left out.

        A key that is not known is warned about; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour, or a size that is missing.
        """
        values = read_fields(cls, settings, honoured=HONOURED, ignored=IGNORED, required=SIZES_WITHOUT_DEFAULT)
        values["rope_parameters"] = read_rope(settings)
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers, vLLM and llama.cpp's converter read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.model_type,
            **written_fields(self, leave_out=("rope_parameters",)),
            **self.rope_parameters.to_hf(),
            "hidden_act": "silu",
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
    # read together, by `read_rope`
    "rope_theta",
    "rope_scaling",
    "original_max_position_embeddings",
    # how a library runs the model
    "pretraining_tp",
    "is_llama_config",
}
"""Keys of Llama's configs that leave the mathematics alone, beside those of every architecture."""
