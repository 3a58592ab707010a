"""Llama 4's text part: experts beside a shared one, and attention that alternates between near and far.

Three layers in four turn queries and keys (Meta's pairs), norm them and attend within chunks; every fourth knows no
positions, attends to the whole past, and sharpens its queries with their position. Sources: llama-models,
models/llama4/{model,moe}.py; the temperature is that of Nakanishi 2025, arXiv 2501.19399.

The weights of a layer's experts lie in one tensor each and stay dense: block formats are for matrices.

Shape suffixes: T tokens of all sequences end to end, W those that are wanted, E hidden size, H query heads, K key/value
heads, N = H + K, D head dimension, F width of an expert, X experts, A experts of a token, R tokens routed to experts (T
· A).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from camelid.kernels.product import linear
from camelid.model.attention import Chunks
from camelid.model.base import LanguageModel, ModelConfig
from camelid.model.initialize import fill_normal
from camelid.model.layers import Embedding, FeedForward, RMSNorm
from camelid.model.linear import Linear, Matrix, gated, project
from camelid.model.llama4_config import Llama4Config
from camelid.model.rotary import AdjacentRotaryEmbedding

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.model.attention import AttentionContext
    from camelid.model.rotary import Rotation

__all__ = ["Llama4", "Llama4Config"]


class Attention(nn.Module):
    """Grouped-query attention, near (with rotary positions) or far (without).

    Args:
        config: the model's shape.
        layer: index of the layer, which tells the context which cache is meant.
    """

    def __init__(self, config: Llama4Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.reach = Chunks(config.attention_chunk_size) if config.layers_with_rope[layer] else None
        self.norm_eps = config.rms_norm_eps if config.use_qk_norm else None
        num_queries, num_keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, num_queries, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, num_keys, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, num_keys, config.attention_bias)
        self.o_proj = Linear(num_queries, config.hidden_size, config.attention_bias)

    def forward(
        self, x_TE: Tensor, rotation: Rotation, temperature_T11: Tensor | None, context: AttentionContext
    ) -> Tensor:
        """[T, E] → [T, E]."""
        q_THD, k_TKD, v_TKD = (
            x.view(len(x_TE), -1, self.head_dim) for x in project(x_TE, self.q_proj, self.k_proj, self.v_proj)
        )
        if self.reach is not None:
            q_THD, k_TKD = self._turned(q_THD, k_TKD, rotation)
        elif temperature_T11 is not None:
            q_THD = (q_THD * temperature_T11).to(q_THD.dtype)
        attended_THD = context.attend(self.layer, q_THD, k_TKD, v_TKD, scale=self.scale, reach=self.reach)
        out_TE: Tensor = self.o_proj(attended_THD.flatten(1))
        return out_TE

    def _turned(self, q_THD: Tensor, k_TKD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        qk_TND = rotation.apply(torch.cat((q_THD, k_TKD), 1))
        if self.norm_eps is not None:
            qk_TND = F.rms_norm(qk_TND.float(), (self.head_dim,), eps=self.norm_eps).to(qk_TND.dtype)
        q_THD, k_TKD = torch.split(qk_TND, [q_THD.shape[1], k_TKD.shape[1]], 1)
        return q_THD, k_TKD


class Experts(nn.Module):
    """SwiGLU layers side by side, their weights in one tensor each, inputs first: gate and up, then down."""

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        num_experts, hidden, width = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, hidden))

    def forward(self, x_RE: Tensor, counts: list[int]) -> Tensor:
        """Each expert's tokens through it, where the first counts[0] are the first expert's and so on: [R, E]."""
        outputs = [self._expert(expert, part) for expert, part in enumerate(torch.split(x_RE, counts)) if len(part) > 0]
        return torch.cat(outputs) if outputs else x_RE

    def _expert(self, expert: int, x_RE: Tensor) -> Tensor:
        gate_RF, up_RF = linear(x_RE, self.gate_up_proj[expert].T).chunk(2, -1)
        return linear(gated(gate_RF, up_RF), self.down_proj[expert].T)


class Router(Linear):
    """Scores the experts. What it says is a choice: a small error makes another one."""

    stays_exact = True


class MixtureOfExperts(nn.Module):
    """shared(x) + Σ expert(sigmoid(score) · x) over the best experts of each token.

    The score scales an expert's input, not its output; each sigmoid stands alone, nothing is normalised, and no token
    is dropped.
    """

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        self.num_chosen = config.num_experts_per_tok
        self.experts = Experts(config)
        self.router = Router(config.hidden_size, config.num_local_experts)
        self.shared_expert = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, E] → [T, E]."""
        score_TX = self.router(x_TE)
        best_TA, expert_TA = score_TX.topk(self.num_chosen, -1)
        # torch's own sigmoid rounds otherwise behind the last whole vector: a token's bits would hang on their number.
        weight_TA = (1 / (1 + (-best_TA.float()).exp())).to(x_TE.dtype)
        order_R = expert_TA.flatten().argsort(stable=True)
        counts = expert_TA.flatten().bincount(minlength=score_TX.shape[1]).tolist()
        token_R = order_R // self.num_chosen
        routed_RE = self.experts(x_TE[token_R] * weight_TA.flatten()[order_R, None], counts)
        out_TE: Tensor = self.shared_expert(x_TE)
        return out_TE.index_add(0, token_R, routed_RE)


class TransformerBlock(nn.Module):
    """h = x + attention(norm(x)); y = h + feed_forward(norm(h)), with or without experts."""

    def __init__(self, config: Llama4Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = (
            MixtureOfExperts(config)
            if layer in config.layers_with_experts
            else FeedForward(config.hidden_size, config.intermediate_size_mlp)
        )

    def forward(
        self, x_TE: Tensor, rotation: Rotation, temperature_T11: Tensor | None, context: AttentionContext
    ) -> Tensor:
        """[T, E] → [T, E]."""
        h_TE = x_TE + self.self_attn(self.input_layernorm(x_TE), rotation, temperature_T11, context)
        y_TE: Tensor = h_TE + self.feed_forward(self.post_attention_layernorm(h_TE))
        return y_TE


class Decoder(nn.Module):
    """Embedding, blocks and the last norm; `model.` in the checkpoint's names."""

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = AdjacentRotaryEmbedding(config.rope_parameters, config.head_dim)
        self.attn_scale = config.attn_scale if config.attn_temperature_tuning else None
        self.floor_scale = config.floor_scale

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """[T] → [W, E]."""
        # The norms are never packed: their dtype is the one that the model computes in.
        x_TE = self.embed_tokens(ids_T).to(self.norm.weight.dtype)
        rotation, temperature_T11 = self.rotary(positions_T), self._temperature(positions_T)
        for block in self.layers:
            x_TE = block(x_TE, rotation, temperature_T11, context)
        hidden_WE: Tensor = self.norm(context.wanted(x_TE))
        return hidden_WE

    def _temperature(self, positions_T: Tensor) -> Tensor | None:
        """1 + attn_scale · ln(1 + ⌊(p + 1) / floor_scale⌋), in fp32."""
        if self.attn_scale is None:
            return None
        floors_T = torch.floor((positions_T.float() + 1) / self.floor_scale)
        return (torch.log1p(floors_T) * self.attn_scale + 1)[:, None, None]


class Llama4(LanguageModel):
    """The language model of a Llama 4; images are not read.

    Parameter names are those of transformers' `Llama4ForCausalLM`.
    """

    config_class: ClassVar[type[ModelConfig]] = Llama4Config
    steps_are_fixed = False  # the tokens of each expert are counted on the host
    config: Llama4Config

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)

    @classmethod
    def from_config(cls, config: Llama4Config) -> Self:
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
        """Matrices and experts from N(0, initializer_range²), norms at 1, biases at 0; the same on every device."""
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, Experts):
                fill_normal(module.gate_up_proj, f"{name}.gate_up_proj", std=std, seed=seed)
                fill_normal(module.down_proj, f"{name}.down_proj", std=std, seed=seed)
            elif isinstance(module, Matrix):
                assert module.weight is not None, "packed weights are not initialised"
                fill_normal(module.weight, f"{name}.weight", std=std, seed=seed)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
