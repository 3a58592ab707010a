"""OPT and Galactica: learned positions, LayerNorm, two-matrix feed-forward layers.

Zhang et al. 2022, arXiv 2205.01068, §2.1; Taylor et al. 2022, arXiv 2211.09085, §4; metaseq's decoder. OPT-350M alone
norms after each residual, has no norm at the end, and has token vectors narrower than its hidden states.

Shape suffixes: T tokens of all sequences end to end, S those that are wanted, E hidden size, W size of the token
vectors, H heads, D head dimension.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final, Self

from torch import nn
from torch.nn import functional as F

from camelid.model.base import LanguageModel, ModelConfig
from camelid.model.initialize import fill_normal
from camelid.model.layers import Embedding
from camelid.model.linear import Linear, Matrix, project
from camelid.model.opt_config import POSITION_OFFSET, OPTConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from camelid.model.attention import AttentionContext

__all__ = ["OPT", "OPTConfig"]

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"relu": F.relu, "gelu": F.gelu}


class Attention(nn.Module):
    """Attention with as many key/value heads as query heads.

    Args:
        config: the model's shape.
        layer: index of the layer, which tells the context which cache is meant.
    """

    def __init__(self, config: OPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        hidden, bias = config.hidden_size, config.enable_bias
        self.k_proj = Linear(hidden, hidden, bias)
        self.v_proj = Linear(hidden, hidden, bias)
        self.q_proj = Linear(hidden, hidden, bias)
        self.out_proj = Linear(hidden, hidden, bias)

    def forward(self, x_TE: Tensor, context: AttentionContext) -> Tensor:
        """[T, E] → [T, E]."""
        q_THD, k_THD, v_THD = (
            x.view(len(x_TE), -1, self.head_dim) for x in project(x_TE, self.q_proj, self.k_proj, self.v_proj)
        )
        attended_THD = context.attend(self.layer, q_THD, k_THD, v_THD, scale=self.scale)
        out_TE: Tensor = self.out_proj(attended_THD.flatten(1))
        return out_TE


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, each with a residual and a norm before its branch or after the sum.

    `final_layer_norm` is the second norm of the block; it has this name in every checkpoint.
    """

    def __init__(self, config: OPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_before = config.do_layer_norm_before
        self.activation = ACTIVATIONS[config.activation_function]
        self.self_attn = Attention(config, layer)
        self.self_attn_layer_norm = _layer_norm(config)
        self.fc1 = Linear(config.hidden_size, config.ffn_dim, config.enable_bias)
        self.fc2 = Linear(config.ffn_dim, config.hidden_size, config.enable_bias)
        self.final_layer_norm = _layer_norm(config)

    def forward(self, x_TE: Tensor, context: AttentionContext) -> Tensor:
        """[T, E] → [T, E]."""
        if self.norm_before:
            x_TE = x_TE + self.self_attn(self.self_attn_layer_norm(x_TE), context)
            return x_TE + self._feed_forward(self.final_layer_norm(x_TE))
        x_TE = self.self_attn_layer_norm(x_TE + self.self_attn(x_TE, context))
        y_TE: Tensor = self.final_layer_norm(x_TE + self._feed_forward(x_TE))
        return y_TE

    def _feed_forward(self, x_TE: Tensor) -> Tensor:
        out_TE: Tensor = self.fc2(self.activation(self.fc1(x_TE)))
        return out_TE


class Decoder(nn.Module):
    """Embeddings of tokens and positions, blocks and the last norm; `model.decoder.` in the checkpoint's names."""

    def __init__(self, config: OPTConfig) -> None:
        super().__init__()
        hidden, embedding = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = Embedding(config.vocab_size, embedding)
        self.embed_positions = nn.Embedding(config.max_position_embeddings + POSITION_OFFSET, hidden)
        self.project_out = None if embedding == hidden else Linear(hidden, embedding)
        self.project_in = None if embedding == hidden else Linear(embedding, hidden)
        self.final_layer_norm = _layer_norm(config) if config.has_final_layer_norm else None
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_hidden_layers))

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """[T] → [S, W]."""
        # The table of positions is never packed: its dtype is the one that the model computes in.
        positions_TE = self.embed_positions(positions_T + POSITION_OFFSET)
        x_TW = self.embed_tokens(ids_T).to(positions_TE.dtype)
        x_TE = positions_TE + (x_TW if self.project_in is None else self.project_in(x_TW))
        for block in self.layers:
            x_TE = block(x_TE, context)
        x_SE = context.wanted(x_TE)
        if self.final_layer_norm is not None:
            x_SE = self.final_layer_norm(x_SE)
        out_SW: Tensor = x_SE if self.project_out is None else self.project_out(x_SE)
        return out_SW


class Model(nn.Module):
    """Only a step in the checkpoint's names."""

    def __init__(self, config: OPTConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)


class OPT(LanguageModel):
    """An OPT with its output projection, or, as released, with the token vectors in that place.

    Final hidden states have the size of the token vectors, which in OPT-350M is not the hidden size.
    """

    config_class: ClassVar[type[ModelConfig]] = OPTConfig
    config: OPTConfig

    def __init__(self, config: OPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Model(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.word_embed_proj_dim, config.vocab_size)

    @classmethod
    def from_config(cls, config: OPTConfig) -> Self:
        """The model with uninitialised parameters on the current default device and in the default dtype."""
        return cls(config)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """Final hidden states [S, W], ready for the output matrix."""
        hidden_SW: Tensor = self.model.decoder(ids_T, positions_T, context)
        return hidden_SW

    @property
    def output_matrix(self) -> Matrix:
        """`lm_head`, or the token vectors where the two are tied."""
        return self.model.decoder.embed_tokens if self.lm_head is None else self.lm_head

    def initialize(self, seed: int) -> None:
        """Matrices from N(0, init_std²), those that end a branch divided by sqrt(2 · layers); norms at 1, biases at 0.

        Source: OPT, §2.2, with init_std 0.006 there.
        """
        std, num_layers = self.config.init_std, self.config.num_hidden_layers
        blocks = [block for block in self.modules() if isinstance(block, TransformerBlock)]
        ends_of_branches = {end for block in blocks for end in (block.self_attn.out_proj, block.fc2)}
        for name, module in self.named_modules():
            if isinstance(module, Matrix | nn.Embedding):
                assert isinstance(module.weight, nn.Parameter), "packed weights are not initialised"
                narrower = math.sqrt(2 * num_layers) if module in ends_of_branches else 1.0
                fill_normal(module.weight, f"{name}.weight", std=std / narrower, seed=seed)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def _layer_norm(config: OPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, elementwise_affine=config.layer_norm_elementwise_affine)
