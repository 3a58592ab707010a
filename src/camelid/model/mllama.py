"""Llama 3.2 Vision: a Llama 3.1 between whose layers others attend to images.

The layers that attend to images are gated by tanh of two learnt numbers, know no positions, and do nothing in sequences
without images, which makes the model the Llama that it grew from (Grattafiori et al. 2024, arXiv 2407.21783, §7.2;
llama-models, models/llama3/multimodal/model.py). Who sees which image is `camelid.model.image_memory`'s affair.

Shape suffixes: T tokens of all sequences end to end, W those that are wanted, R those of sequences with images, L
patches of all images of a sequence, E hidden size, H query heads, K key/value heads, D head dimension, O width of the
encoder's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn

from camelid.model.base import LanguageModel, ModelConfig
from camelid.model.block_stack import BlockStack
from camelid.model.image_memory import ImageMemory
from camelid.model.initialize import fill_normal
from camelid.model.layers import Embedding, FeedForward, RMSNorm
from camelid.model.linear import Linear, Matrix
from camelid.model.llama import BLOCK_PARTS, TransformerBlock
from camelid.model.mllama_config import MllamaConfig
from camelid.model.mllama_images import ImageTiles, TileReader
from camelid.model.mllama_vision import VisionModel
from camelid.model.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from camelid.model.attention import AttentionContext
    from camelid.model.image_memory import ImageReads, PromptImage
    from camelid.model.image_reader import ImageReader

__all__ = ["Mllama", "MllamaConfig"]


class CrossAttention(nn.Module):
    """Attention of tokens to images; queries and keys are normed and not turned.

    Args:
        config: the model's shape.
        number: which of the layers that attend to images this is.
    """

    def __init__(self, config: MllamaConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        num_keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, num_keys)
        self.v_proj = Linear(config.hidden_size, num_keys)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x_RE: Tensor, images: ImageReads) -> Tensor:
        """[R, E] → [R, E]."""
        q_RHD = self.q_norm(self.q_proj(x_RE).view(len(x_RE), -1, self.head_dim))
        attended_RHD = images.attend(self.number, q_RHD, scale=self.scale)
        out_RE: Tensor = self.o_proj(attended_RHD.flatten(1))
        return out_RE

    def remember(self, patches_LE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [L, K, D] of an image's patches."""
        k_LKD, v_LKD = (
            projection(patches_LE).view(len(patches_LE), -1, self.head_dim) for projection in (self.k_proj, self.v_proj)
        )
        return self.k_norm(k_LKD), v_LKD


class CrossAttentionBlock(nn.Module):
    """h = x + tanh(g) · attention(norm(x)); y = h + tanh(g') · feed_forward(norm(h)), or x where no image is seen."""

    def __init__(self, config: MllamaConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn = CrossAttention(config, number)
        self.cross_attn_attn_gate = nn.Parameter(torch.empty(1))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        self.cross_attn_mlp_gate = nn.Parameter(torch.empty(1))

    def forward(self, x_TE: Tensor, images: ImageReads) -> Tensor:
        """[T, E] → [T, E]; tokens that see no image stay as they are."""
        x_RE = images.take(x_TE)
        attended_RE = self.cross_attn(self.input_layernorm(x_RE), images)
        h_RE = x_RE + self.cross_attn_attn_gate.tanh() * attended_RE
        fed_RE = self.mlp(self.post_attention_layernorm(h_RE))
        return images.put(x_TE, h_RE + self.cross_attn_mlp_gate.tanh() * fed_RE)


class Decoder(nn.Module):
    """Embedding, blocks of both kinds and the last norm; `language_model.model.` in the checkpoint's names."""

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.num_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(_blocks(config))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim)
        self._stack = BlockStack(BLOCK_PARTS)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """[T] → [W, E]."""
        # The norms are never packed: their dtype is the one that the model computes in.
        x_TE = self.embed_tokens(ids_T).to(self.norm.weight.dtype)
        rotation = self.rotary(positions_T)
        if context.images is None:
            blocks = [block for block in self.layers if not isinstance(block, CrossAttentionBlock)]
            native_WE = self._stack.run(blocks, x_TE, rotation, context, self.norm)
            if native_WE is not None:
                return native_WE
        for block in self.layers:
            if not isinstance(block, CrossAttentionBlock):
                x_TE = block(x_TE, rotation, context)
            elif context.images is not None:
                x_TE = block(x_TE, context.images)
        hidden_WE: Tensor = self.norm(context.wanted(x_TE))
        return hidden_WE


class TextModel(nn.Module):
    """The decoder and its output matrix; `language_model.` in the checkpoint's names."""

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)


class Mllama(LanguageModel):
    """A Llama 3.2 Vision. Parameter names are those of a Hugging Face folder."""

    config_class: ClassVar[type[ModelConfig]] = MllamaConfig
    image_reader_class: ClassVar[type[ImageReader] | None] = TileReader
    config: MllamaConfig

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision)
        self.multi_modal_projector = Linear(config.vision.output_size, config.hidden_size, bias=True)
        self.language_model = TextModel(config)

    @classmethod
    def from_config(cls, config: MllamaConfig) -> Self:
        """The model with uninitialised parameters on the current default device and in the default dtype."""
        return cls(config)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """Final hidden states [W, E], after the last norm."""
        hidden_WE: Tensor = self.language_model.model(ids_T, positions_T, context)
        return hidden_WE

    def image_memory(self, images: Sequence[PromptImage], positions: Sequence[int]) -> ImageMemory:
        """Keys and values of the images, one image encoded after the other; see `LanguageModel.image_memory`."""
        per_image = [self._remember(image) for image in images if isinstance(image, ImageTiles)]
        assert len(per_image) == len(images) == len(positions), "images are prepared by this model's reader"
        keys, values = (
            tuple(torch.cat(layer) for layer in zip(*(memory[part] for memory in per_image), strict=True))
            for part in (0, 1)
        )
        num_patches = self.config.vision.num_patches
        lengths = tuple(len(image.pixels) * num_patches for image in images if isinstance(image, ImageTiles))
        return ImageMemory(keys, values, tuple(positions), lengths)

    def _remember(self, image: ImageTiles) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of one image, of each layer that attends to it."""
        patches_LO = self.vision_model(image.pixels, image.arrangement).flatten(0, 1)
        patches_LE = self.multi_modal_projector(patches_LO)
        blocks = [block for block in self.language_model.model.layers if isinstance(block, CrossAttentionBlock)]
        pairs = [block.cross_attn.remember(patches_LE) for block in blocks]
        return [k_LKD for k_LKD, _ in pairs], [v_LKD for _, v_LKD in pairs]

    @property
    def output_matrix(self) -> Matrix:
        """`lm_head`, which has no rows for the extra embeddings."""
        return self.language_model.lm_head

    def initialize(self, seed: int) -> None:
        """Matrices from N(0, initializer_range²), norms at 1, biases at 0, gates closed: at first images do nothing."""
        self.vision_model.initialize("vision_model", seed)
        nn.init.zeros_(self.multi_modal_projector.bias)  # type: ignore[arg-type]
        for name, module in self.named_modules():
            if name.startswith("vision_model."):
                continue
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, CrossAttentionBlock):
                nn.init.zeros_(module.cross_attn_attn_gate)
                nn.init.zeros_(module.cross_attn_mlp_gate)
            elif isinstance(module, Matrix):
                assert module.weight is not None, "packed weights are not initialised"
                fill_normal(module.weight, f"{name}.weight", std=self.config.initializer_range, seed=seed)


def _blocks(config: MllamaConfig) -> list[nn.Module]:
    """Layers in order; each kind is numbered by itself."""
    backbone, crossing = config.backbone, config.cross_attention_layers
    blocks: list[nn.Module] = []
    for index in range(config.num_hidden_layers):
        num_crossing = sum(layer < index for layer in crossing)
        if index in crossing:
            blocks.append(CrossAttentionBlock(config, num_crossing))
        else:
            blocks.append(TransformerBlock(backbone, index - num_crossing))
    return blocks
