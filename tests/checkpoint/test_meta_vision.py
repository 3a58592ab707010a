"""Meta's folders of Llama 3.2 Vision, written the plain way and opened as the model they were made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_folder import interleaved
from tiny_mllama import tiny_mllama

from camelid.base.errors import CamelidError, ConfigError, FormatError
from camelid.checkpoint import load_model, open_checkpoint
from camelid.model.mllama import Mllama

NAMES = [  # of Hugging Face, of Meta, in this order
    (r"^language_model\.model\.embed_tokens", "text_model.tok_embeddings"),
    (r"^language_model\.model\.norm", "text_model.norm"),
    (r"^language_model\.lm_head", "text_model.output"),
    (r"^language_model\.model\.layers", "text_model.layers"),
    (r"self_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"cross_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"cross_attn\.([qk])_norm", r"attention.\1_norm"),
    (r"cross_attn_attn_gate", "gate_attn"),
    (r"cross_attn_mlp_gate", "gate_ffwd"),
    (r"^(text_model.*)input_layernorm", r"\1attention_norm"),
    (r"^(text_model.*)post_attention_layernorm", r"\1ffn_norm"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"^multi_modal_projector", "vision_model.vision_projection"),
    (r"^vision_model\.(?!vision_projection)", "vision_model.vision_encoder."),
    (r"patch_embedding", "conv1._linear"),
    (r"transformer\.layers", "transformer.resblocks"),
    (r"(vision_encoder.*)attention\.w", r"\1attn.w"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"(vision_encoder.*)input_layernorm", r"\1ln_1"),
    (r"(vision_encoder.*)post_attention_layernorm", r"\1ln_2"),
    (r"layernorm_(pre|post)", r"ln_\1"),
    (r"gated_positional_embedding\.embedding", "positional_embedding"),
    (r"gated_positional_embedding\.tile_embedding\.weight", "gated_positional_embedding"),
    (r"gated_positional_embedding\.gate", "gated_positional_embedding_gate"),
    (r"_tile_positional_embedding\.embedding\.weight", "_tile_pos_embed.embedding"),
    (r"_tile_positional_embedding\.gate", "_tile_pos_embed.gate"),
]
ROWS = re.compile(
    r"(attention|attn)\.w[qkv]\.|feed_forward\.w[13]\.|c_fc\.|conv1|vision_projection|tok_emb|learnable|output\.weight"
)
COLUMNS = re.compile(r"(attention|attn)\.wo\.|feed_forward\.w2\.|c_proj\.weight")

PARAMS = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 128,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "use_scaled_rope": True,
    "vision_chunk_size": 28,
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 2,
}


@pytest.fixture(scope="module")
def model() -> Mllama:
    return tiny_mllama()


def by_rows_and_columns(rows: torch.Tensor) -> torch.Tensor:
    """The table of tiles from what each arrangement says; what none does is 0."""
    tiles = rows.view(9, 4, -1)
    table = torch.zeros(4, 4, tiles.shape[2])
    for number, (height, width) in enumerate([(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)], start=1):
        table[:height, :width] = tiles[number, : height * width].view(height, width, -1)
    return table


def meta_tensors(model: Mllama) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, value in model.state_dict().items():
        meta = name
        for pattern, replacement in NAMES:
            meta = re.sub(pattern, replacement, meta)
        if layer := re.match(r"text_model\.layers\.(\d+)\.", meta):
            plain, crossing = [0, 2, 3, 5], [1, 4]
            number = int(layer[1])
            kind = "cross_attention_layers" if number in crossing else "layers"
            place = (crossing if number in crossing else plain).index(number)
            meta = meta.replace(layer[0], f"text_model.{kind}.{place}.", 1)
        if re.search(r"self_attn\.[qk]_proj", name) and name.startswith("language_model"):
            value = interleaved(value, 16)
        if name.endswith("patch_embedding.weight"):
            value = value.flatten(1)
        if name.endswith(("tile_embedding.weight", "tile_positional_embedding.embedding.weight")):
            value = by_rows_and_columns(value)
            value = value.view(4, 4, -1, 32)
        if name.endswith("embed_tokens.weight"):
            tensors["text_model.learnable_embedding.weight"] = value[128:]
            value = value[:128]
        tensors[meta] = value.clone()
    tensors["text_model.rope.freqs"] = torch.zeros(8)
    return tensors


def write(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1, **params: Any) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    for rank in range(shards):
        parts = {}
        for name, value in tensors.items():
            axis = 0 if ROWS.search(name) else 1 if COLUMNS.search(name) else None
            if "norm" in name:
                axis = None
            parts[name] = value if axis is None else value.chunk(shards, dim=axis)[rank].clone()
        torch.save(parts, folder / ("consolidated.pth" if shards == 1 else f"consolidated.{rank:02}.pth"))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_a_release_opens_as_the_model_it_was_made_from(model: Mllama, shards: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "meta", meta_tensors(model), shards)

    with closing(open_checkpoint(folder)) as checkpoint:
        read = load_model(checkpoint)

    expected = model.state_dict()
    assert read.config == model.config
    assert {name for name, value in read.state_dict().items() if not torch.equal(value, expected[name])} == set()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"vision_chunk_size": None}, "vision_chunk_size"),
        ({"vision_chunk_size": 27}, "patches"),
        ({"vision_num_cross_attention_layers": 3}, r"cannot stand among"),
        ({"vision_num_cross_attention_layers": "2"}, "vision_num_cross_attention_layers"),
        ({"vision_max_num_chunks": 3}, "table"),
        ({"n_layers": 2**20}, "n_layers"),
        ({"dim": 32}, "dim 32"),
    ],
)
def test_sizes_that_contradict_the_tensors_are_refused(
    model: Mllama, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "meta", meta_tensors(model), **params)

    with pytest.raises(CamelidError, match=message), closing(open_checkpoint(folder)) as checkpoint:
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_model.learnable_embedding.weight": torch.zeros(7, 64)}, "extra embeddings"),
        ({"text_model.learnable_embedding.weight": None}, "no matrix"),
        ({"vision_model.vision_encoder.positional_embedding": None}, "missing"),
        ({"text_model.cross_attention_layers.2.gate_attn": torch.zeros(1)}, "no place"),
        ({"vision_model.other": torch.zeros(1)}, "no place"),
        ({"text_model.cross_attention_layers.1.gate_attn": torch.zeros(2)}, "shape"),
    ],
)
def test_tensors_that_are_missing_or_odd_are_refused(
    model: Mllama, change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: value for name, value in {**meta_tensors(model), **change}.items() if value is not None}
    folder = write(tmp_path / "meta", tensors)

    with pytest.raises((FormatError, ConfigError), match=message), closing(open_checkpoint(folder)) as checkpoint:
        load_model(checkpoint)
