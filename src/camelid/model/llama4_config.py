"""The shape of a Llama 4's text part: `model_type` "llama4_text".

Apart from `camelid.model.llama4` so that shapes can be listed and sized without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from camelid.base.errors import ConfigError
from camelid.model.config import (
    LARGEST,
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

MOST_EXPERTS = 2**16


@dataclass(frozen=True, kw_only=True)
class Llama4Config(ModelConfig):
    """The shape of a Llama 4; defaults are those of transformers' `Llama4TextConfig`, where they are no sizes.

    Raises:
        ConfigError: a value that no Llama 4 can have.
    """

    model_type: ClassVar[str] = "llama4_text"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Width of each expert, and of the shared one."""
    intermediate_size_mlp: int
    """Width of the feed-forward layer where there are no experts."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = cast("int", None)
    """Left out: as many as query heads."""
    head_dim: int = cast("int", None)
    """Left out: hidden_size / num_attention_heads."""
    num_local_experts: int = 16
    num_experts_per_tok: int = 1
    interleave_moe_layer_step: int = 1
    """Every so many layers, from the layer of this number on, there are experts, unless `moe_layers` is given."""
    moe_layers: tuple[int, ...] | None = None
    """Indices of the layers with experts, where they follow no such step."""
    no_rope_layer_interval: int = 4
    """Every so many layers one has no rotary positions, unless `no_rope_layers` is given."""
    no_rope_layers: tuple[int, ...] | None = None
    """For each layer 1 if it has rotary positions, else 0, where they follow no such interval; the name is Hugging
    Face's."""
    attention_chunk_size: int = 8192
    """Layers with rotary positions attend within chunks of so many positions; the others to the whole past."""
    use_qk_norm: bool = True
    """In layers with rotary positions, queries and keys are divided by their root mean square once turned."""
    attn_temperature_tuning: bool = True
    """In the others, queries grow with their position: by 1 + attn_scale · ln(1 + ⌊(p + 1) / floor_scale⌋)."""
    floor_scale: int = 8192
    attn_scale: float = 0.1
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: RopeParameters = field(default_factory=lambda: RopeParameters(rope_theta=500_000.0))
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            require_count(name, getattr(self, name))
        require_count("intermediate_size_mlp", self.intermediate_size_mlp, largest=LARGEST["intermediate_size"])
        derive_heads(self)
        require_count("num_local_experts", self.num_local_experts, largest=MOST_EXPERTS)
        require_count("num_experts_per_tok", self.num_experts_per_tok, largest=self.num_local_experts)
        for name in ("interleave_moe_layer_step", "no_rope_layer_interval"):
            require_count(name, getattr(self, name), largest=LARGEST["num_hidden_layers"])
        for name in ("attention_chunk_size", "floor_scale"):
            require_count(name, getattr(self, name), largest=LARGEST["max_position_embeddings"])
        self._check_layers()
        require_number("attn_scale", self.attn_scale, above=0, at_most=100)
        require_number("rms_norm_eps", self.rms_norm_eps, above=0, at_most=1)
        require_number("initializer_range", self.initializer_range, above=0, at_most=10)
        for name in ("use_qk_norm", "attn_temperature_tuning", "attention_bias"):
            require_flag(name, getattr(self, name))
        require_common(self)

    def _check_layers(self) -> None:
        num_layers, sparse, turning = self.num_hidden_layers, self.moe_layers, self.no_rope_layers
        if sparse is not None and not _are_numbers(sparse, below=num_layers):
            raise ConfigError(f"moe_layers must be indices below {num_layers}", where="moe_layers")
        if turning is not None and not (_are_numbers(turning, below=2) and len(turning) == num_layers):
            raise ConfigError(f"no_rope_layers must be {num_layers} numbers, each 0 or 1", where="no_rope_layers")

    @property
    def layers_with_experts(self) -> tuple[int, ...]:
        """Their indices, in order."""
        if self.moe_layers is not None:
            return tuple(sorted(set(self.moe_layers)))
        step = self.interleave_moe_layer_step
        return tuple(range(step - 1, self.num_hidden_layers, step))

    @property
    def layers_with_rope(self) -> tuple[int, ...]:
        """For each layer 1 if it has rotary positions, else 0."""
        if self.no_rope_layers is not None:
            return self.no_rope_layers
        return tuple(int((layer + 1) % self.no_rope_layer_interval != 0) for layer in range(self.num_hidden_layers))

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`, or its `text_config`, old and new spellings; null means left out.

        A key that is not known is warned about; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour, or a size that is missing.
        """
        values = read_fields(cls, settings, honoured=HONOURED, ignored=IGNORED, required=SIZES_WITHOUT_DEFAULT)
        for name in ("moe_layers", "no_rope_layers"):
            if isinstance(value := values.get(name), list):
                values[name] = tuple(value)
        if not values.get("no_rope_layers"):  # the first configs on the hub have an empty list
            values.pop("no_rope_layers", None)
        if type(tuning := values.get("attn_temperature_tuning")) is int:  # 4 in the first configs on the hub
            values["attn_temperature_tuning"] = tuning > 0
        with_theta = {**settings, "rope_theta": settings.get("rope_theta") or 500_000.0}
        values["rope_parameters"] = read_rope(with_theta)
        config = cls(**values)._without_what_follows()
        kinds = settings.get("layer_types")
        if kinds is not None and kinds != config.layer_types:
            raise ConfigError(
                "layer_types disagrees with no_rope_layers: attention is chunked in the layers with rotary positions",
                where="layer_types",
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers and vLLM read."""
        return {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": self.model_type,
            **written_fields(self, leave_out=("rope_parameters",)),
            **self.rope_parameters.to_hf(),
            "moe_layers": list(self.layers_with_experts),
            "no_rope_layers": list(self.layers_with_rope),
            "hidden_act": "silu",
        }

    def _without_what_follows(self) -> Self:
        """The same shape, with lists of layers only where step and interval do not say the same."""
        plain = replace(self, moe_layers=None, no_rope_layers=None)
        if plain.layers_with_experts != self.layers_with_experts:
            plain = replace(plain, moe_layers=self.layers_with_experts)
        if plain.layers_with_rope != self.layers_with_rope:
            plain = replace(plain, no_rope_layers=self.layers_with_rope)
        return plain

    @property
    def layer_types(self) -> list[str]:
        """What each layer attends to, in transformers' words."""
        return ["chunked_attention" if turning else "full_attention" for turning in self.layers_with_rope]

    @property
    def num_parameters(self) -> int:
        """Embedding, layers with all their experts, final norm, and the output projection unless it is tied."""
        return self._count(experts=self.num_local_experts)

    @property
    def num_active_parameters(self) -> int:
        """Those that one token is computed with: of the experts only the chosen ones."""
        return self._count(experts=self.num_experts_per_tok)

    def _count(self, experts: int) -> int:
        hidden, width = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = 2 * hidden * queries + 2 * hidden * keys + 2 * hidden
        if self.attention_bias:
            layer += queries + 2 * keys + hidden
        sparse = hidden * self.num_local_experts + (experts + 1) * 3 * hidden * width
        dense = 3 * hidden * self.intermediate_size_mlp
        num_sparse = len(self.layers_with_experts)
        feed_forward = num_sparse * sparse + (self.num_hidden_layers - num_sparse) * dense
        tables = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * layer + feed_forward + hidden


SIZES_WITHOUT_DEFAULT = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "num_hidden_layers",
    "num_attention_heads",
}

HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama4_text",),
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "sliding_window": (),
    "partial_rotary_factor": (1.0,),
    "is_encoder_decoder": (False,),
    "cross_attention_layers": (),
}
"""Keys that change the mathematics in models of this layout → the values that leave it as it is here."""

IGNORED = {
    # read in this file
    "rope_theta",
    "rope_scaling",
    "original_max_position_embeddings",
    "layer_types",
    # of training: no loss here balances the experts, nor is there noise in the router
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    # how a library runs the model
    "cache_implementation",
    "for_llm_compressor",
    "pretraining_tp",
}
"""Keys of Llama 4's configs that leave the mathematics alone, beside those of every architecture."""


def _are_numbers(values: object, *, below: int) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < below for value in values)
