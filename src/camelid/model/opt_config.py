"""The shape of an OPT (Zhang et al. 2022, arXiv 2205.01068) or a Galactica (Taylor et al. 2022, arXiv 2211.09085).

Apart from `camelid.model.opt` so that shapes can be listed and sized without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from camelid.base.errors import ConfigError, did_you_mean
from camelid.model.config import (
    LARGEST,
    ModelConfig,
    derive,
    read_fields,
    require_common,
    require_count,
    require_flag,
    require_number,
    written_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

POSITION_OFFSET = 2
"""Position p has row p + 2 of its table: metaseq counted from after the padding id, 1."""

ACTIVATIONS = ("relu", "gelu")
"""Of the feed-forward layer: OPT's and Galactica's; "gelu" is the exact one, with the error function."""


@dataclass(frozen=True, kw_only=True)
class OPTConfig(ModelConfig):
    """The shape of an OPT; defaults are those of transformers' `OPTConfig`, where there are any.

    Raises:
        ConfigError: a value that no OPT can have.
    """

    model_type: ClassVar[str] = "opt"

    vocab_size: int
    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048
    word_embed_proj_dim: int = cast("int", None)
    """Size of the token vectors; left out: hidden_size. Where it is another, as in OPT-350M, two projections lead from
    there to the hidden size and back."""
    do_layer_norm_before: bool = True
    """False, as in OPT-350M: norms after each residual, and none at the end."""
    remove_final_layer_norm: bool = False
    """`_remove_final_layer_norm` in a `config.json`: norms before, but none at the end."""
    activation_function: str = "relu"
    enable_bias: bool = True
    """Biases on the projections of attention and feed-forward layer; Galactica has none."""
    layer_norm_elementwise_affine: bool = True
    """Weights and biases in the norms; Galactica has none."""
    tie_word_embeddings: bool = True
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = 1
    dtype: str = "float32"
    num_key_value_heads: int = field(init=False)
    """As many as query heads."""
    head_dim: int = field(init=False)
    """hidden_size / num_attention_heads."""

    def __post_init__(self) -> None:
        derive(self, "word_embed_proj_dim", self.hidden_size)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            require_count(name, getattr(self, name))
        require_count("max_position_embeddings", self.max_position_embeddings)
        require_count("ffn_dim", self.ffn_dim, largest=LARGEST["intermediate_size"])
        require_count("word_embed_proj_dim", self.word_embed_proj_dim, largest=LARGEST["hidden_size"])
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
                where="hidden_size",
            )
        object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"activation_function must be one of {', '.join(ACTIVATIONS)}, not {self.activation_function!r}",
                where="activation_function",
                hint=did_you_mean(str(self.activation_function), ACTIVATIONS),
            )
        require_number("init_std", self.init_std, above=0, at_most=10)
        for name in (
            "do_layer_norm_before",
            "remove_final_layer_norm",
            "enable_bias",
            "layer_norm_elementwise_affine",
        ):
            require_flag(name, getattr(self, name))
        require_common(self)

    @property
    def has_final_layer_norm(self) -> bool:
        """Whether a norm follows the last layer."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`; null means left out.

        A key that is not known is warned about; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour, or a size that is missing.
        """
        values = read_fields(cls, settings, honoured=HONOURED, ignored=IGNORED, required=SIZES_WITHOUT_DEFAULT)
        if settings.get("_remove_final_layer_norm") is not None:
            values["remove_final_layer_norm"] = settings["_remove_final_layer_norm"]
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers and vLLM read."""
        return {
            "architectures": ["OPTForCausalLM"],
            "model_type": self.model_type,
            **written_fields(self, leave_out=("remove_final_layer_norm",)),
            "_remove_final_layer_norm": self.remove_final_layer_norm,
        }

    @property
    def num_parameters(self) -> int:
        """Embeddings of tokens and positions, layers, projections and final norm, and the output unless it is tied."""
        hidden, width, embedding = self.hidden_size, self.ffn_dim, self.word_embed_proj_dim
        norm = 2 * hidden if self.layer_norm_elementwise_affine else 0
        layer = 4 * hidden * hidden + 2 * hidden * width + 2 * norm
        if self.enable_bias:
            layer += 4 * hidden + width + hidden
        tables = self.vocab_size * embedding * (1 if self.tie_word_embeddings else 2)
        tables += (self.max_position_embeddings + POSITION_OFFSET) * hidden
        projections = 0 if embedding == hidden else 2 * embedding * hidden
        return tables + projections + self.num_hidden_layers * layer + (norm if self.has_final_layer_norm else 0)


SIZES_WITHOUT_DEFAULT = {"vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads"}

HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("opt",),
    "is_encoder_decoder": (False,),
    "learned_embeddings": (True,),
    "scale_embeddings": (False,),
    "bias": (True,),
}
"""Keys that change the mathematics in models of OPT's layout → the values that leave it as it is here."""

IGNORED = {
    # read in this file
    "_remove_final_layer_norm",
    # regularisation that released models were trained with; here, as in every architecture, training has no dropout
    "dropout",
    "activation_dropout",
    "layerdrop",
}
"""Keys of OPT's configs that leave the mathematics of a trained model alone, beside those of every architecture."""
