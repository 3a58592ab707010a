"""A tiny Llama 3.2 Vision beside transformers' with the same weights, and prompts with images for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from camelid.model.attention import PackedContext
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.model.mllama_images import ImageTiles

VOCAB_SIZE = 128
IMAGE = VOCAB_SIZE
"""The image token."""

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "cross_attention_layers": [1, 3],
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_global_layers": 2,
    "attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "intermediate_layers_indices": [1, 3],
    "vision_output_dim": 96,
}


@dataclass(frozen=True)
class VisionPair:
    """One set of weights in both implementations."""

    ours: Mllama
    theirs: Any

    def our_logits(self, ids: Sequence[int], images: Sequence[ImageTiles] = ()) -> torch.Tensor:
        context = PackedContext([len(ids)], images=[self.memory(ids, images)])
        return self.ours.logits(self.ours(torch.tensor(ids), context.positions(), context))

    def memory(self, ids: Sequence[int], images: Sequence[ImageTiles]) -> Any:
        return self.ours.image_memory(images, [p for p, i in enumerate(ids) if i == IMAGE]) if images else None

    def their_logits(self, ids: Sequence[int], images: Sequence[ImageTiles] = ()) -> torch.Tensor:
        logits: torch.Tensor = self.theirs(torch.tensor([ids]), **their_images(ids, images)).logits[0]
        return logits

    def their_reply(self, ids: Sequence[int], images: Sequence[ImageTiles], num_tokens: int) -> list[int]:
        settings = {"max_new_tokens": num_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
        reply = self.theirs.generate(torch.tensor([ids]), **their_images(ids, images), **settings)
        return list(reply[0, len(ids) :].tolist())


def their_images(ids: Sequence[int], images: Sequence[ImageTiles]) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of one prompt's images."""
    if not images:
        return {}
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    arrangements = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
    pixels = torch.zeros(1, len(images), 4, 3, 28, 28)
    tiles = torch.zeros(1, len(images), 4, dtype=torch.int64)
    for number, image in enumerate(images):
        pixels[0, number, : len(image.pixels)] = image.pixels
        tiles[0, number, : len(image.pixels)] = 1
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(list(ids), IMAGE)],
        num_tiles=[[len(image.pixels) for image in images]],
        max_num_tiles=4,
        length=len(ids),
    )
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[arrangements.index(image.arrangement) + 1 for image in images]]),
        "aspect_ratio_mask": tiles,
        "cross_attention_mask": torch.from_numpy(mask),
    }


def new_image(rows: int, columns: int, seed: int = 0) -> ImageTiles:
    generator = torch.Generator().manual_seed(seed * 100 + rows * 10 + columns)
    return ImageTiles(torch.randn(rows * columns, 3, 28, 28, generator=generator), (rows, columns))


def make_vision_pair(seed: int = 0) -> VisionPair:
    """Both models, every parameter drawn at random, gates included: closed gates would hide every mistake."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    their_config = transformers.MllamaConfig(text_config=TEXT, vision_config=VISION, image_token_index=IMAGE)
    config = MllamaConfig.from_hf(their_config.to_dict())
    their_config.vision_config.intermediate_layers_indices = their_indices(VISION["intermediate_layers_indices"])
    theirs = transformers.MllamaForConditionalGeneration._from_config(their_config, attn_implementation="eager").eval()
    for name, parameter in theirs.named_parameters():
        centre = 1.0 if name.endswith(("norm.weight", "norm_pre.weight", "norm_post.weight")) else 0.0
        torch.nn.init.normal_(parameter, centre, 0.7 if name.endswith(("gate", "gate_attn", "gate_ffn")) else 0.2)
    attend_to_what_is_seen(theirs)
    ours = Mllama.from_config(config).eval()
    ours.load_state_dict({hub_name(name): value for name, value in theirs.state_dict().items()}, strict=True)
    return VisionPair(ours, theirs)


def their_indices(indices: Sequence[int]) -> list[int]:
    """Where transformers finds what goes into these layers of the encoder.

    Meta's code and transformers up to 4.5x count from what goes into the first layer; later releases from what comes
    out of it, which reads one layer late from the released weights.
    """
    from transformers.models.mllama.modeling_mllama import MllamaVisionConfig, MllamaVisionEncoder

    config = MllamaVisionConfig(**{**VISION, "intermediate_layers_indices": [0]})
    config._attn_implementation = "eager"
    states = MllamaVisionEncoder(config, num_layers=3)(torch.zeros(1, 5, VISION["hidden_size"])).hidden_states
    late = len(states) == 3
    return [index - late for index in indices]


def attend_to_what_is_seen(theirs: Any) -> None:
    """Make transformers' model take nothing from images for tokens that see none, as Meta's code does and vLLM.

    By itself it lets them attend to all images, and leaves out the feed-forward part alone.
    """
    seeing: list[torch.Tensor] = []

    def remember(_: Any, __: Any, settings: dict[str, Any]) -> None:
        mask = settings["full_text_row_masked_out_mask"]
        seeing[:] = [] if mask is None else [mask[:, 0]]

    for layer in theirs.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.register_forward_pre_hook(remember, with_kwargs=True)
            layer.cross_attn.register_forward_hook(
                lambda *call: (call[2][0] * seeing[0] if seeing else call[2][0], None)
            )


def hub_name(name: str) -> str:
    """The name in a folder of the hub of a tensor in transformers' module."""
    name = name.replace("model.language_model.", "language_model.model.", 1)
    return (
        name.replace("lm_head.", "language_model.lm_head.", 1)
        if name.startswith("lm_head")
        else name.removeprefix("model.")
    )
