"""The encoder of Llama 3.2 Vision: tiles of an image in, one vector per patch out.

A vision transformer in two parts, a plain one and one of gated layers, over the patches of all tiles together
(Dosovitskiy et al. 2020, arXiv 2010.11929; Grattafiori et al. 2024, arXiv 2407.21783, §7.1; llama-models,
models/llama3/multimodal/model.py). An image of fewer tiles is padded with black ones and every tile with a few empty
tokens; these attend to the image and not to each other, while the image attends to all of them: so it was trained.

Shape suffixes: M tiles, P tokens of a tile (the class token and the patches), N tokens of all tiles with the padding, E
width, O width of the output, H heads, D head dimension.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from camelid.model.initialize import fill_normal
from camelid.model.layers import Embedding
from camelid.model.linear import Linear, Matrix

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.model.mllama_config import MllamaVisionConfig

TOKENS_MULTIPLE = 8
"""The tokens of a tile are padded to a multiple of so many."""


class VisionAttention(nn.Module):
    """Attention of every token to every token, but of padding to the image alone."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.attention_heads
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, config.hidden_size)
        self.v_proj = Linear(config.hidden_size, config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_NE: Tensor, num_real: int) -> Tensor:
        """[N, E] → [N, E]; the first `num_real` tokens are the image's."""
        q_1HND, k_1HND, v_1HND = (
            projection(x_NE).view(1, len(x_NE), self.num_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        real = F.scaled_dot_product_attention(q_1HND[:, :, :num_real], k_1HND, v_1HND)
        padding = F.scaled_dot_product_attention(
            q_1HND[:, :, num_real:], k_1HND[:, :, :num_real], v_1HND[:, :, :num_real]
        )
        attended_NE = torch.cat((real, padding), 2)[0].transpose(0, 1).flatten(1)
        out_NE: Tensor = self.o_proj(attended_NE)
        return out_NE


class VisionFeedForward(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x_NE: Tensor) -> Tensor:
        """[N, E] → [N, E]."""
        out_NE: Tensor = self.fc2(F.gelu(self.fc1(x_NE)))
        return out_NE


class VisionBlock(nn.Module):
    """h = x + attention(norm(x)); y = h + feed_forward(norm(h)); a gated one multiplies both by tanh of a number."""

    def __init__(self, config: MllamaVisionConfig, *, gated: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = VisionAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VisionFeedForward(config)
        self.gate_attn = nn.Parameter(torch.empty(1)) if gated else None
        self.gate_ffn = nn.Parameter(torch.empty(1)) if gated else None

    def forward(self, x_NE: Tensor, num_real: int) -> Tensor:
        """[N, E] → [N, E]."""
        attended_NE: Tensor = self.self_attn(self.input_layernorm(x_NE), num_real)
        h_NE = x_NE + (attended_NE if self.gate_attn is None else self.gate_attn.tanh() * attended_NE)
        fed_NE: Tensor = self.mlp(self.post_attention_layernorm(h_NE))
        return h_NE + (fed_NE if self.gate_ffn is None else self.gate_ffn.tanh() * fed_NE)


class VisionTransformer(nn.Module):
    """Blocks one after another; the input of some is wanted too."""

    def __init__(self, config: MllamaVisionConfig, num_layers: int, *, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(config, gated=gated) for _ in range(num_layers))

    def forward(self, x_NE: Tensor, num_real: int, wanted: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """The output [N, E], and what went into each of the wanted blocks."""
        inputs = []
        for index, block in enumerate(self.layers):
            if index in wanted:
                inputs.append(x_NE)
            x_NE = block(x_NE, num_real)
        return x_NE, inputs


class TileEmbedding(nn.Module):
    """A vector for each tile of each arrangement, gated."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.num_tiles = config.max_num_tiles
        self.embedding = Embedding(len(config.arrangements) + 1, config.max_num_tiles * config.hidden_size)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, arrangement_1: Tensor) -> Tensor:
        """[M, 1, E], for the id of an arrangement."""
        vectors: Tensor = self.embedding(arrangement_1).view(self.num_tiles, 1, -1)
        return self.gate.tanh() * vectors


class PositionEmbedding(nn.Module):
    """A vector for each token of a tile, and for each token of each tile of each arrangement; a gate goes between."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        num_tiles, num_tokens, width = config.max_num_tiles, config.num_patches, config.hidden_size
        self.shape = (num_tiles, num_tokens, width)
        self.embedding = nn.Parameter(torch.empty(num_tokens, width))
        self.tile_embedding = Embedding(len(config.arrangements) + 1, num_tiles * num_tokens * width)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, arrangement_1: Tensor) -> Tensor:
        """[M, P, E], for the id of an arrangement."""
        gate = self.gate.tanh()
        of_tiles_MPE: Tensor = self.tile_embedding(arrangement_1).view(self.shape)
        return (1 - gate) * self.embedding + gate * of_tiles_MPE


class VisionModel(nn.Module):
    """The encoder; `vision_model.` in the checkpoint's names."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.gated_positional_embedding = PositionEmbedding(config)
        self.pre_tile_positional_embedding = TileEmbedding(config)
        self.post_tile_positional_embedding = TileEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(width)
        self.layernorm_post = nn.LayerNorm(width)
        self.transformer = VisionTransformer(config, config.num_hidden_layers, gated=False)
        self.global_transformer = VisionTransformer(config, config.num_global_layers, gated=True)

    def forward(self, pixels: Tensor, arrangement: tuple[int, int]) -> Tensor:
        """Vectors of all tiles, padding included: [M, P, O].

        Args:
            pixels: the image's tiles, row by row: [tiles, 3, image_size, image_size].
            arrangement: rows and columns of tiles.
        """
        config = self.config
        num_tiles, num_tokens = config.max_num_tiles, config.num_patches
        number = torch.tensor([config.arrangements.index(arrangement) + 1], device=self.class_embedding.device)
        x_MPE = self._embed(pixels.to(self.class_embedding), number)
        # Padding goes to the end, so that what attends alike lies together; the order makes no other difference.
        num_empty = -num_tokens % TOKENS_MULTIPLE
        empty_NE = x_MPE.new_zeros(num_tiles * num_empty, config.hidden_size)
        x_NE = torch.cat((x_MPE.flatten(0, 1), empty_NE))
        num_real, num_kept = len(pixels) * num_tokens, num_tiles * num_tokens
        x_NE, inputs = self.transformer(x_NE, num_real, config.intermediate_layers_indices)
        of_tiles_ME = self.post_tile_positional_embedding(number)[:, 0]
        x_NE = self.layernorm_post(x_NE) + torch.cat(
            (of_tiles_ME.repeat_interleave(num_tokens, 0), of_tiles_ME.repeat_interleave(num_empty, 0))
        )
        x_NE, _ = self.global_transformer(x_NE, num_real)
        parts = [x_NE[:num_kept]]
        if inputs:
            parts.append(torch.stack(inputs, -1)[:num_kept].flatten(1))
        return torch.cat(parts, -1).view(num_tiles, num_tokens, -1)

    def _embed(self, pixels: Tensor, number: Tensor) -> Tensor:
        """Patches and class token of all tiles with their positions, normed: [M, P, E]."""
        patches: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        padded = F.pad(patches, (0, 0, 0, 0, 0, self.config.max_num_tiles - len(patches)))
        padded = padded + self.pre_tile_positional_embedding(number)
        with_class = torch.cat((self.class_embedding.expand(len(padded), 1, -1), padded), 1)
        x_MPE: Tensor = self.layernorm_pre(with_class + self.gated_positional_embedding(number))
        return x_MPE

    def initialize(self, name: str, seed: int) -> None:
        """Matrices from N(0, initializer_range²), class and positions from N(0, 1 / E), norms at 1, biases at 0.

        Gates of embeddings start closed, those of layers at π / 4. Source: llama-models, as above.
        """
        std = self.config.initializer_range
        fill_normal(self.class_embedding, f"{name}.class_embedding", std=self.config.hidden_size**-0.5, seed=seed)
        for path, module in self.named_modules(prefix=name):
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Matrix | nn.Conv2d):
                assert isinstance(module.weight, nn.Parameter), "packed weights are not initialised"
                fill_normal(module.weight, f"{path}.weight", std=std, seed=seed)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, TileEmbedding):
                nn.init.zeros_(module.gate)
            elif isinstance(module, PositionEmbedding):
                nn.init.zeros_(module.gate)
                std_of_positions = self.config.hidden_size**-0.5
                fill_normal(module.embedding, f"{path}.embedding", std=std_of_positions, seed=seed)
            elif isinstance(module, VisionBlock) and module.gate_attn is not None and module.gate_ffn is not None:
                nn.init.constant_(module.gate_attn, math.pi / 4)
                nn.init.constant_(module.gate_ffn, math.pi / 4)
