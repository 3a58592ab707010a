"""The shape of a Llama 3.2 Vision: `model_type` "mllama", a text part and a vision part.

Apart from `camelid.model.mllama` so that shapes can be listed and sized without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from camelid.base.errors import ConfigError
from camelid.model.config import (
    LARGEST,
    ModelConfig,
    derive_heads,
    read_fields,
    refuse_other_values,
    require_common,
    require_count,
    require_number,
    warn_of_unknown,
    written_fields,
)
from camelid.model.harmless_keys import HARMLESS
from camelid.model.llama_config import LlamaConfig
from camelid.model.rope import RopeParameters, read_rope

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_TILES = 64
LARGEST_TILE = 2**14

EXTRA_EMBEDDINGS = 8
"""Rows of the embedding past the vocabulary, learnt along with the vision part; the image token's is the first."""


@dataclass(frozen=True, kw_only=True)
class MllamaVisionConfig:
    """The shape of the encoder that reads tiles of images; defaults are those of transformers' `MllamaVisionConfig`.

    Raises:
        ConfigError: a value that no such encoder can have.
    """

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    """Of the first transformer."""
    num_global_layers: int = 8
    """Of the second, whose layers are gated."""
    attention_heads: int = 16
    image_size: int = 448
    """Height and width of a tile."""
    patch_size: int = 14
    max_num_tiles: int = 4
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)
    """Layers of the first transformer whose input is part of the output, ascending (see docs/decisions/0014)."""
    norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            require_count(name, getattr(self, name))
        require_count("num_global_layers", self.num_global_layers, largest=LARGEST["num_hidden_layers"])
        require_count("attention_heads", self.attention_heads, largest=LARGEST["num_attention_heads"])
        require_count("image_size", self.image_size, largest=LARGEST_TILE)
        require_count("patch_size", self.patch_size, largest=self.image_size)
        require_count("max_num_tiles", self.max_num_tiles, largest=MOST_TILES)
        if self.hidden_size % self.attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of attention_heads {self.attention_heads}",
                where="vision_config.attention_heads",
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"a tile of {self.image_size} cannot be cut into patches of {self.patch_size}",
                where="vision_config.patch_size",
            )
        indices = self.intermediate_layers_indices
        if not _are_layers(indices, self.num_hidden_layers):
            raise ConfigError(
                f"intermediate_layers_indices must be ascending indices below {self.num_hidden_layers}, not {indices}",
                where="vision_config.intermediate_layers_indices",
            )
        require_number("norm_eps", self.norm_eps, above=0, at_most=1)
        require_number("initializer_range", self.initializer_range, above=0, at_most=10)

    @property
    def num_patches(self) -> int:
        """Tokens of a tile: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_size(self) -> int:
        """Numbers per patch that the encoder gives: its last state beside the intermediate ones."""
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))

    @property
    def arrangements(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tiles that an image may be cut into; number n of them has the id n + 1."""
        most = range(1, self.max_num_tiles + 1)
        return tuple((rows, columns) for rows in most for columns in most if rows * columns <= self.max_num_tiles)

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read a `vision_config`; null means left out.

        Raises:
            ConfigError: a value or a key that cannot be honoured.
        """
        refuse_other_values(settings, VISION_HONOURED)
        names = {f.name for f in fields(cls)}
        derived = {"vision_output_dim", "supported_aspect_ratios"}
        warn_of_unknown(settings, {*names, *derived, *VISION_HONOURED, *HARMLESS, "dtype", "tie_word_embeddings"})
        values = {name: settings[name] for name in names if settings.get(name) is not None}
        if isinstance(indices := values.get("intermediate_layers_indices"), list):
            values["intermediate_layers_indices"] = tuple(indices)
        config = cls(**values)
        expected = {"vision_output_dim": config.output_size, "supported_aspect_ratios": config._ratios}
        for name, value in expected.items():
            if settings.get(name) is not None and settings[name] != value:
                raise ConfigError(
                    f"{name} is {settings[name]!r} where the other sizes make it {value!r}",
                    where=f"vision_config.{name}",
                )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `vision_config`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "model_type": "mllama_vision_model",
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            "vision_output_dim": self.output_size,
            "supported_aspect_ratios": self._ratios,
            "num_channels": 3,
            "hidden_act": "gelu",
        }

    @property
    def _ratios(self) -> list[list[int]]:
        return [list(arrangement) for arrangement in self.arrangements]

    @property
    def num_parameters(self) -> int:
        """Of the encoder, without what projects its output."""
        hidden, width, num_ratios = self.hidden_size, self.intermediate_size, len(self.arrangements) + 1
        layer = 4 * hidden * hidden + 2 * hidden * width + width + hidden + 4 * hidden
        layers = self.num_hidden_layers * layer + self.num_global_layers * (layer + 2)
        positions = self.num_patches * hidden * (1 + num_ratios * self.max_num_tiles) + 1
        tiles = 2 * (num_ratios * self.max_num_tiles * hidden + 1)
        return layers + positions + tiles + 3 * self.patch_size**2 * hidden + hidden + 4 * hidden


@dataclass(frozen=True, kw_only=True)
class MllamaConfig(ModelConfig):
    """The shape of a Llama 3.2 Vision; defaults are those of transformers' `MllamaTextConfig`, where they are no sizes.

    Raises:
        ConfigError: a value that no such model can have.
    """

    model_type: ClassVar[str] = "mllama"

    vocab_size: int
    """Tokens that the model writes; it reads `EXTRA_EMBEDDINGS` more."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    """Those that attend to images among them."""
    num_attention_heads: int
    num_key_value_heads: int = cast("int", None)
    """Left out: as many as query heads."""
    head_dim: int = cast("int", None)
    """hidden_size / num_attention_heads."""
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    """Indices of the layers that attend to images instead of tokens, ascending."""
    vision: MllamaVisionConfig = field(default_factory=MllamaVisionConfig)
    image_token_index: int = 128256
    """The token that stands for an image; one of the extra embeddings."""
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: RopeParameters = field(default_factory=lambda: RopeParameters(rope_theta=500_000.0))
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    bos_token_id: int | None = 128000
    eos_token_id: int | tuple[int, ...] | None = 128001
    pad_token_id: int | None = 128004
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            require_count(name, getattr(self, name))
        derive_heads(self)
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            raise ConfigError(
                f"{self.num_attention_heads} heads of {self.head_dim} do not make a hidden size of {self.hidden_size}",
                where="head_dim",
            )
        if not _are_layers(self.cross_attention_layers, self.num_hidden_layers):
            raise ConfigError(
                f"cross_attention_layers must be ascending indices below {self.num_hidden_layers}, "
                f"not {self.cross_attention_layers}",
                where="cross_attention_layers",
            )
        if len(self.cross_attention_layers) == self.num_hidden_layers:
            raise ConfigError("no layer attends to tokens", where="cross_attention_layers")
        if not isinstance(self.vision, MllamaVisionConfig):
            raise ConfigError("vision is no shape of a vision part", where="vision_config")
        token = self.image_token_index
        if type(token) is not int or not self.vocab_size <= token < self.num_embeddings:
            raise ConfigError(
                f"the image token must be one of the {EXTRA_EMBEDDINGS} past the vocabulary of {self.vocab_size}, "
                f"not {token!r}",
                where="image_token_index",
            )
        require_number("rms_norm_eps", self.rms_norm_eps, above=0, at_most=1)
        require_number("initializer_range", self.initializer_range, above=0, at_most=10)
        require_common(self)
        if self.tie_word_embeddings:
            raise ConfigError("the output matrix has fewer rows than the embedding", where="tie_word_embeddings")

    @property
    def num_embeddings(self) -> int:
        """The vocabulary and the extra rows."""
        return self.vocab_size + EXTRA_EMBEDDINGS

    @property
    def num_cached_layers(self) -> int:
        """Layers that attend to tokens."""
        return self.num_hidden_layers - len(self.cross_attention_layers)

    @property
    def image_token_id(self) -> int:
        """The token that stands for an image in a prompt."""
        return self.image_token_index

    @property
    def kv_elements_per_image(self) -> int:
        """Keys and values of all patches of all tiles, padding included, in the layers that attend to images."""
        num_patches = self.vision.max_num_tiles * self.vision.num_patches
        return 2 * len(self.cross_attention_layers) * num_patches * self.num_key_value_heads * self.head_dim

    @property
    def backbone(self) -> LlamaConfig:
        """The Llama that the layers which attend to tokens are of."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_cached_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters=self.rope_parameters,
        )

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`, old and new spellings; null means left out.

        A key that is not known is warned about; one that would change the mathematics is refused.

        Raises:
            ConfigError: a value or a key that this architecture cannot honour, or a size that is missing.
        """
        refuse_other_values(settings, HONOURED)
        text, vision = (_table(settings, name) for name in ("text_config", "vision_config"))
        warn_of_unknown(settings, {*OUTER, *SHARED, *HONOURED, *HARMLESS, "dtype"})
        outer = {name: settings[name] for name in SHARED if settings.get(name) is not None}
        dtype = settings.get("dtype") or settings.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
        text = {**outer, **text, "image_token_index": settings.get("image_token_index"), "dtype": dtype}
        values = read_fields(cls, text, honoured=TEXT_HONOURED, ignored=TEXT_IGNORED, required=SIZES_WITHOUT_DEFAULT)
        if isinstance(layers := values.get("cross_attention_layers"), list):
            values["cross_attention_layers"] = tuple(layers)
        values["rope_parameters"] = read_rope({**text, "rope_theta": text.get("rope_theta") or 500_000.0})
        return cls(**values | {"vision": MllamaVisionConfig.from_hf(vision)})

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that transformers and vLLM read."""
        text = written_fields(self, leave_out=("rope_parameters", "vision", "image_token_index", "head_dim"))
        dtype = text.pop("torch_dtype")
        return {
            "architectures": ["MllamaForConditionalGeneration"],
            "model_type": self.model_type,
            "image_token_index": self.image_token_index,
            "text_config": {
                "model_type": "mllama_text_model",
                **text,
                **self.rope_parameters.to_hf(),
                "hidden_act": "silu",
            },
            "vision_config": self.vision.to_hf(),
            "torch_dtype": dtype,
        }

    @property
    def num_parameters(self) -> int:
        """Both embeddings, all layers, norms and the output matrix; the vision part and what projects its output."""
        hidden, backbone = self.hidden_size, self.backbone
        keys = self.num_key_value_heads * self.head_dim
        feed_forward = 3 * hidden * self.intermediate_size
        cross = 2 * hidden * hidden + 2 * hidden * keys + feed_forward + 2 * hidden + 2 * self.head_dim + 2
        projector = (self.vision.output_size + 1) * hidden
        text = backbone.num_parameters + EXTRA_EMBEDDINGS * hidden + len(self.cross_attention_layers) * cross
        return text + projector + self.vision.num_parameters


SIZES_WITHOUT_DEFAULT = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
}

HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("mllama",),
    "tie_word_embeddings": (False,),
    "is_encoder_decoder": (False,),
}
"""Keys of the outer config that change the mathematics → the values that leave it as it is here."""

TEXT_HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("mllama_text_model",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (),
    "partial_rotary_factor": (1.0,),
    "is_encoder_decoder": (False,),
    "vision": (),
}
"""Keys of a `text_config` that change the mathematics → the values that leave it as it is here."""

TEXT_IGNORED = {
    # read in this file
    "rope_theta",
    "rope_scaling",
    "original_max_position_embeddings",
    # of training: nothing is dropped here
    "dropout",
}

VISION_HONOURED: dict[str, tuple[object, ...]] = {
    "model_type": ("mllama_vision_model",),
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "is_encoder_decoder": (False,),
}
"""Keys of a `vision_config` that change the mathematics → the values that leave it as it is here."""

SHARED = ("quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that belong to the text part where only the outer config states them."""

OUTER = {"text_config", "vision_config", "image_token_index", "initializer_range"}


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = settings.get(name) or {}
    if not isinstance(table, dict):
        raise ConfigError(f"{name} must be a table, not {table!r}", where=name)
    return table


def _are_layers(values: object, num_layers: int) -> bool:
    return (
        isinstance(values, tuple)
        and all(type(value) is int and 0 <= value < num_layers for value in values)
        and list(values) == sorted(set(values))
    )
