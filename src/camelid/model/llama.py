"""Llama: LLaMA 1, Llama 2, Code Llama, Llama 3 to 3.3 text, and whatever else has their layout.

Pre-norm blocks of rotary grouped-query attention and SwiGLU (Touvron et al. 2023, arXiv 2302.13971, §2.2; 2307.09288,
§2.2; Grattafiori et al. 2024, arXiv 2407.21783, §3.2).

Shape suffixes: T tokens of all sequences end to end, W those that are wanted, E hidden size, H query heads, K key/value
heads, N = H + K, D head dimension, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn

from camelid.model.base import LanguageModel, ModelConfig
from camelid.model.block_stack import BlockStack
from camelid.model.initialize import fill_normal
from camelid.model.layers import Embedding, FeedForward, RMSNorm
from camelid.model.linear import Linear, Matrix, project
from camelid.model.llama_config import LlamaConfig
from camelid.model.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.model.attention import AttentionContext
    from camelid.model.rotary import Rotation

__all__ = ["Llama", "LlamaConfig"]


class Attention(nn.Module):
    """Grouped-query attention: query head h reads key/value head h // (H // K).

    Args:
        config: the model's shape.
        layer: index of the layer, which tells the context which cache is meant.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        num_queries, num_keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, num_queries, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, num_keys, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, num_keys, config.attention_bias)
        self.o_proj = Linear(num_queries, config.hidden_size, config.attention_bias)

    def forward(self, x_TE: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        """[T, E] → [T, E]."""
        q, k, v = project(x_TE, self.q_proj, self.k_proj, self.v_proj)
        q_THD, k_TKD, v_TKD = (x.view(len(x), -1, self.head_dim) for x in (q, k, v))
        if torch.is_grad_enabled():
            q_THD, k_TKD = rotation.apply(q_THD), rotation.apply(k_TKD)
        else:
            # Turned together: on a CPU, decoding spends its spare time on the number of operations, not on a copy.
            qk_TND = rotation.apply(torch.cat((q_THD, k_TKD), 1))
            q_THD, k_TKD = torch.split(qk_TND, [q_THD.shape[1], k_TKD.shape[1]], 1)
        attended_THD = context.attend(self.layer, q_THD, k_TKD, v_TKD, scale=self.scale)
        out_TE: Tensor = self.o_proj(attended_THD.flatten(1))
        return out_TE


class TransformerBlock(nn.Module):
    """h = x + attention(norm(x)); y = h + feed_forward(norm(h))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(self, x_TE: Tensor, rotation: Rotation, context: AttentionContext) -> Tensor:
        """[T, E] → [T, E]."""
        h_TE = x_TE + self.self_attn(self.input_layernorm(x_TE), rotation, context)
        y_TE: Tensor = h_TE + self.mlp(self.post_attention_layernorm(h_TE))
        return y_TE


BLOCK_PARTS: dict[str, type[nn.Module]] = {
    "": TransformerBlock,
    "input_layernorm": RMSNorm,
    "self_attn": Attention,
    "self_attn.q_proj": Linear,
    "self_attn.k_proj": Linear,
    "self_attn.v_proj": Linear,
    "self_attn.o_proj": Linear,
    "post_attention_layernorm": RMSNorm,
    "mlp": FeedForward,
    "mlp.gate_proj": Linear,
    "mlp.up_proj": Linear,
    "mlp.down_proj": Linear,
}
"""What a block is, for `BlockStack`."""


class Decoder(nn.Module):
    """Embedding, blocks and the last norm; `model.` in the checkpoint's names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim)
        self._stack = BlockStack(BLOCK_PARTS)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """[T] → [W, E]."""
        # The norms are never packed: their dtype is the one that the model computes in.
        x_TE = self.embed_tokens(ids_T).to(self.norm.weight.dtype)
        rotation = self.rotary(positions_T)
        native_WE = self._stack.run(self.layers, x_TE, rotation, context, self.norm)
        if native_WE is not None:
            return native_WE
        for block in self.layers:
            x_TE = block(x_TE, rotation, context)
        hidden_WE: Tensor = self.norm(context.wanted(x_TE))
        return hidden_WE


class Llama(LanguageModel):
    """A Llama with its output projection, or with the embedding in that place where the two are tied.

    Parameter names are those of a Hugging Face folder; a tied model has no `lm_head.weight`, as there.
    """

    config_class: ClassVar[type[ModelConfig]] = LlamaConfig
    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)

    @classmethod
    def from_config(cls, config: LlamaConfig) -> Self:
        """The model with uninitialised parameters on the current default device and in the default dtype."""
        return cls(config)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """Final hidden states [W, E], after the last norm."""
        hidden_WE: Tensor = self.model(ids_T, positions_T, context)
        return hidden_WE

    @property
    def output_matrix(self) -> Matrix:
        """`lm_head`, or the embedding where the two are tied."""
        return self.model.embed_tokens if self.lm_head is None else self.lm_head

    def initialize(self, seed: int) -> None:
        """Matrices from N(0, initializer_range²), norms at 1, biases at 0; the same on every device."""
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, Matrix):
                assert module.weight is not None, "packed weights are not initialised"
                fill_normal(module.weight, f"{name}.weight", std=self.config.initializer_range, seed=seed)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
