"""Meta's folders of Llama 3.2 Vision: a Llama under `text_model.`, layers that attend to images, and the encoder.

Meta numbers the layers that attend to images by themselves and its table of positions by rows and columns of tiles;
Hugging Face counts all layers together and has one row per arrangement (llama-models,
models/llama3/multimodal/model.py; transformers, models/mllama/convert_mllama_weights_to_hf.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint.base import TensorInfo
from camelid.checkpoint.huggingface import CONFIG, file_inside, read_json
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.meta import LEFT_OPEN, NAMES, MetaCheckpoint, halves, is_rotated
from camelid.checkpoint.meta_params import PARAMS, Shapes, config_from_params
from camelid.model.mllama_config import EXTRA_EMBEDDINGS, MllamaConfig, MllamaVisionConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

NUM_CROSSING: Final = "vision_num_cross_attention_layers"
TILE_SIZE: Final = "vision_chunk_size"
MOST_TILES: Final = "vision_max_num_chunks"

ENCODER_HEADS: Final = 16
"""Of the image encoder; no file states them."""

TEXT: Final = "language_model."
CROSS_LAYERS: Final = "text_model.cross_attention_layers."
_CROSS: Final = f"{CROSS_LAYERS}{{layer}}."
_CROSSING: Final = "language_model.model.layers.{layer}."
_ENCODER: Final = "vision_model.vision_encoder."

VISION_NAMES: Final[Mapping[str, tuple[str, int | None]]] = {
    **{f"text_model.{meta}": (f"language_model.{ours}", axis) for meta, (ours, axis) in NAMES.items()},
    "text_model.learnable_embedding": ("learnable_embedding", 0),
    f"{_CROSS}attention.wq": (f"{_CROSSING}cross_attn.q_proj", 0),
    f"{_CROSS}attention.wk": (f"{_CROSSING}cross_attn.k_proj", 0),
    f"{_CROSS}attention.wv": (f"{_CROSSING}cross_attn.v_proj", 0),
    f"{_CROSS}attention.wo": (f"{_CROSSING}cross_attn.o_proj", 1),
    f"{_CROSS}attention.q_norm": (f"{_CROSSING}cross_attn.q_norm", None),
    f"{_CROSS}attention.k_norm": (f"{_CROSSING}cross_attn.k_norm", None),
    f"{_CROSS}attention_norm": (f"{_CROSSING}input_layernorm", None),
    f"{_CROSS}ffn_norm": (f"{_CROSSING}post_attention_layernorm", None),
    f"{_CROSS}feed_forward.w1": (f"{_CROSSING}mlp.gate_proj", 0),
    f"{_CROSS}feed_forward.w2": (f"{_CROSSING}mlp.down_proj", 1),
    f"{_CROSS}feed_forward.w3": (f"{_CROSSING}mlp.up_proj", 0),
    f"{_CROSS}gate_attn": (f"{_CROSSING}cross_attn_attn_gate", None),
    f"{_CROSS}gate_ffwd": (f"{_CROSSING}cross_attn_mlp_gate", None),
    f"{_ENCODER}conv1._linear": ("vision_model.patch_embedding", 0),
    f"{_ENCODER}class_embedding": ("vision_model.class_embedding", None),
    f"{_ENCODER}ln_pre": ("vision_model.layernorm_pre", None),
    f"{_ENCODER}ln_post": ("vision_model.layernorm_post", None),
    f"{_ENCODER}positional_embedding": ("vision_model.gated_positional_embedding.embedding", None),
    f"{_ENCODER}gated_positional_embedding": (
        "vision_model.gated_positional_embedding.tile_embedding.weight",
        None,
    ),
    f"{_ENCODER}gated_positional_embedding_gate": ("vision_model.gated_positional_embedding.gate", None),
    f"{_ENCODER}pre_tile_pos_embed.embedding": ("vision_model.pre_tile_positional_embedding.embedding.weight", None),
    f"{_ENCODER}pre_tile_pos_embed.gate": ("vision_model.pre_tile_positional_embedding.gate", None),
    f"{_ENCODER}post_tile_pos_embed.embedding": ("vision_model.post_tile_positional_embedding.embedding.weight", None),
    f"{_ENCODER}post_tile_pos_embed.gate": ("vision_model.post_tile_positional_embedding.gate", None),
    **{
        f"{_ENCODER}{part}.resblocks.{{layer}}.{meta}": (f"vision_model.{part}.layers.{{layer}}.{ours}", axis)
        for part in ("transformer", "global_transformer")
        for meta, ours, axis in (
            ("attn.wq", "self_attn.q_proj", 0),
            ("attn.wk", "self_attn.k_proj", 0),
            ("attn.wv", "self_attn.v_proj", 0),
            ("attn.wo", "self_attn.o_proj", 1),
            ("mlp.c_fc", "mlp.fc1", 0),
            ("mlp.c_proj", "mlp.fc2", 1),
            ("ln_1", "input_layernorm", None),
            ("ln_2", "post_attention_layernorm", None),
            ("gate_attn", "gate_attn", None),
            ("gate_ffn", "gate_ffn", None),
        )
    },
    "vision_model.vision_projection": ("multi_modal_projector", 0),
}
"""As `camelid.checkpoint.meta.NAMES`; a bias is split like the rows of its weight."""

DERIVED: Final = frozenset({"text_model.rope.freqs"})

EMBEDDING: Final = "language_model.model.embed_tokens.weight"
EXTRA: Final = "learnable_embedding.weight"
"""Read into the last rows of the embedding."""
PATCHES: Final = "vision_model.patch_embedding.weight"
TABLES: Final = (".tile_embedding.weight", "_tile_positional_embedding.embedding.weight")


def reads_images(params: Mapping[str, Any]) -> bool:
    """Whether a `params.json` is a Llama 3.2 Vision's."""
    return params.get(NUM_CROSSING) not in (None, -1, 0)


class MetaVisionCheckpoint(MetaCheckpoint):
    """An opened folder of Llama 3.2 Vision as Meta releases it.

    Raises:
        NotFoundError: `params.json` or a shard is missing.
        FormatError: a file is damaged, would run code, or contradicts another.
    """

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `params.json` and the tensors say; how the encoder is put together beyond that is the release's.

        A `config.json` beside them adds what they leave open.

        Raises:
            ConfigError: a size that no such model can have.
            FormatError: the files contradict each other.
        """
        if not (self.path / CONFIG).exists():
            return self._shape.to_hf()
        beside = MllamaConfig.from_hf(read_json(file_inside(self.path, CONFIG)))
        vision = replace(self._shape.vision, initializer_range=beside.vision.initializer_range)
        left_open = {name: getattr(beside, name) for name in LEFT_OPEN}
        config = replace(self._shape, vision=vision, **left_open)
        for field in fields(config):
            here, there = getattr(config, field.name), getattr(beside, field.name)
            if field.name != "dtype" and here != there:
                raise FormatError(
                    f"{CONFIG} and {PARAMS} disagree on {field.name}: {there} and {here}", where=self.path
                )
        return config.to_hf()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name and in its shape there."""
        return {name: self._described(name) for name in self._sources if name != EXTRA}

    def read(self, name: str) -> Tensor:
        """One tensor, joined and in Hugging Face's order."""
        import torch

        tensor = self._joined(name)
        if name == EMBEDDING:
            return torch.cat((tensor, self._joined(EXTRA)))
        if name.startswith(TEXT) and is_rotated(name.removeprefix(TEXT)):
            return halves(tensor, self._shape.head_dim)
        if name.endswith(TABLES):
            return by_arrangement(tensor, self._shape.vision.arrangements)
        return tensor.reshape(self.tensors[name].shape)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        super().release(name)
        if name == EMBEDDING:
            super().release(EXTRA)

    def _joined(self, name: str) -> Tensor:
        import torch

        source, axis = self._source(name)
        parts = [shard.read(source) for shard in (self._shards if axis is not None else self._shards[:1])]
        return parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, dim=axis)

    def _described(self, name: str) -> TensorInfo:
        joined = self._info(name)
        shape, itemsize = joined.shape, joined.num_bytes // max(math.prod(joined.shape), 1)
        if name == EMBEDDING:
            shape = (shape[0] + self._info(EXTRA).shape[0], shape[1])
        elif name == PATCHES:
            shape = (shape[0], 3, self._shape.vision.patch_size, self._shape.vision.patch_size)
        elif name.endswith(TABLES):
            shape = (len(self._shape.vision.arrangements) + 1, math.prod(shape[1:]))
        elif name.endswith("gate"):
            shape = (1,) if math.prod(shape) == 1 else shape
        return TensorInfo(name, shape, joined.format, math.prod(shape) * itemsize)

    @cached_property
    def _shape(self) -> MllamaConfig:
        where = self.path / PARAMS
        crossing = self._number(NUM_CROSSING)
        embedding, patches = self._info(EMBEDDING), self._info(PATCHES)
        keys = self._info("language_model.model.layers.0.self_attn.k_proj.weight")
        shapes = Shapes(
            vocab_size=embedding.shape[0],
            hidden_size=embedding.shape[1],
            intermediate_size=self._info("language_model.model.layers.0.mlp.gate_proj.weight").shape[0],
            key_rows=keys.shape[0],
            tied=False,
            dtype=embedding.format,
        )
        others = {key: value for key, value in self._params.items() if not key.startswith("vision_")}
        text = config_from_params(others, shapes, where)
        if self._info(EXTRA).shape[0] != EXTRA_EMBEDDINGS:
            raise FormatError(f"there are not {EXTRA_EMBEDDINGS} extra embeddings", where=self.path)
        vision = MllamaVisionConfig(
            hidden_size=patches.shape[0],
            intermediate_size=self._info("vision_model.transformer.layers.0.mlp.fc1.weight").shape[0],
            num_hidden_layers=self._count("transformer"),
            num_global_layers=self._count("global_transformer"),
            attention_heads=ENCODER_HEADS,
            image_size=self._number(TILE_SIZE),
            patch_size=math.isqrt(patches.shape[1] // 3),
            max_num_tiles=self._number(MOST_TILES) if MOST_TILES in self._params else 4,
        )
        fields = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        backbone = text["num_hidden_layers"]
        config = MllamaConfig.from_hf(
            {
                "model_type": "mllama",
                "image_token_index": shapes.vocab_size,
                "torch_dtype": shapes.dtype,
                "text_config": {
                    **{name: text[name] for name in (*fields, "max_position_embeddings", "rms_norm_eps")},
                    "num_hidden_layers": backbone + crossing,
                    "cross_attention_layers": list(crossing_layers(backbone, crossing)),
                    "rope_theta": text["rope_theta"],
                    "rope_scaling": text["rope_scaling"],
                    "bos_token_id": text["bos_token_id"],
                    "eos_token_id": text["eos_token_id"],
                },
                "vision_config": vision.to_hf(),
            }
        )
        self._check_table_shapes(config)
        return config

    def _check_table_shapes(self, config: MllamaConfig) -> None:
        most = config.vision.max_num_tiles
        for name in self._sources:
            if name.endswith(TABLES) and self._info(name).shape[:2] != (most, most):
                raise FormatError(f"the table '{name}' is not of {most} × {most} tiles", where=self.path)

    def _count(self, part: str) -> int:
        pattern = re.compile(rf"vision_model\.{part}\.layers\.\d+\.input_layernorm\.weight")
        return sum(pattern.fullmatch(name) is not None for name in self._sources)

    def _number(self, key: str) -> int:
        value = self._params.get(key)
        if type(value) is not int or not 1 <= value <= 2**14:
            raise ConfigError(f"{key} is {value!r}", where=self.path / PARAMS)
        return value

    def _rename(self) -> dict[str, tuple[str, int | None]]:
        """Hugging Face name → Meta's, and the dimension that the shards split."""
        self._refuse_bytes()
        first = self._shards[0].tensors
        crossing, backbone = self._number(NUM_CROSSING), self._number("n_layers")
        crossed = crossing_layers(backbone, crossing)
        if len(crossed) != crossing:
            raise ConfigError(f"{crossing} layers cannot stand among {backbone} others", where=self.path / PARAMS)
        plain = [layer for layer in range(backbone + crossing) if layer not in crossed]
        sources = {}
        for name in first:
            if name in DERIVED:
                continue
            pattern, layer = split_layer(name)
            stem, leaf = re.fullmatch(r"(.*?)(\.weight|\.bias)?", pattern, re.DOTALL).groups()  # type: ignore[union-attr]
            known, number = VISION_NAMES.get(stem), int(layer[:6] or 0)
            numbers = crossed if name.startswith(CROSS_LAYERS) else plain
            if name.startswith("text_model.") and layer:
                number = numbers[number] if number < len(numbers) else -1
            if known is None or number < 0:
                raise FormatError(f"the tensor {name[:200]!r} has no place in a Llama 3.2 Vision", where=self.path)
            renamed = known[0].format(layer=number) + (leaf or "")
            self._check_parts(name)
            sources[renamed] = (name, split_axis(known[1], leaf or ""))
        needed = (EMBEDDING, EXTRA, PATCHES, *_FIRST_OF_A_LAYER)
        for name in needed:
            if name not in sources or len(first[sources[name][0]].shape) != 2:
                raise FormatError(f"there is no matrix for '{name}'", where=self.path)
        return sources

    def _check_parts(self, name: str) -> None:
        parts = {(shard.tensors[name].shape, shard.tensors[name].dtype) for shard in self._shards}
        if len(parts) > 1:
            raise FormatError(f"the shards' parts of '{name}' do not fit together: {sorted(parts)}", where=self.path)


_FIRST_OF_A_LAYER: Final = (
    "language_model.model.layers.0.self_attn.k_proj.weight",
    "language_model.model.layers.0.mlp.gate_proj.weight",
    "vision_model.transformer.layers.0.mlp.fc1.weight",
)


def crossing_layers(num_layers: int, num_crossing: int) -> tuple[int, ...]:
    """Where the layers that attend to images stand among all: before every so many-th of the others, from the last."""
    step = -(-num_layers // num_crossing)
    followed = list(range(num_layers - 1, -1, -step))[:num_crossing]
    return tuple(layer + before for before, layer in enumerate(reversed(followed)))


def split_axis(axis: int | None, leaf: str) -> int | None:
    """The dimension that shards split of a weight or its bias, which goes with the weight's rows."""
    return axis if leaf != ".bias" or axis == 0 else None


def by_arrangement(table: Tensor, arrangements: tuple[tuple[int, int], ...]) -> Tensor:
    """[rows, columns, tokens, width] → a row per arrangement, its tiles one after the other; row 0 is nobody's."""
    most, width = table.shape[0], math.prod(table.shape[2:])
    rows = table.new_zeros(len(arrangements) + 1, most, width)
    for number, (height, columns) in enumerate(arrangements, start=1):
        rows[number, : height * columns] = table[:height, :columns].reshape(height * columns, width)
    return rows.flatten(1)


def by_place(rows: Tensor, vision: MllamaVisionConfig) -> Tensor:
    """The inverse of `by_arrangement`; 0 at places that are in no arrangement."""
    most = vision.max_num_tiles
    tiles = rows.view(len(rows), most, -1, vision.hidden_size)
    table = rows.new_zeros(most, most, *tiles.shape[2:])
    for number, (height, columns) in enumerate(vision.arrangements, start=1):
        table[:height, :columns] = tiles[number, : height * columns].view(height, columns, *tiles.shape[2:])
    return table
