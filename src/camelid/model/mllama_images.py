"""Images as Llama 3.2 Vision takes them: scaled, padded, normalised and cut into tiles.

Source: llama-models, models/llama3/multimodal/image_transform.py; the same bits as transformers' Pillow processor for
this model, which a test holds it to.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from camelid.base.errors import ConfigError
from camelid.model.config import refuse_other_values, warn_of_unknown
from camelid.model.image_reader import ImageReader
from camelid.model.mllama_config import LARGEST_TILE, MOST_TILES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor

    from camelid.model.mllama_config import MllamaConfig

BILINEAR = 2
"""Pillow's number of the filter, which a `preprocessor_config.json` names."""


@dataclass(frozen=True)
class ImageTiles:
    """One image, prepared."""

    pixels: Tensor
    """fp32 [tiles, 3, tile size, tile size], row by row."""
    arrangement: tuple[int, int]
    """Rows and columns of tiles."""

    @cached_property
    def digest(self) -> bytes:
        """A hash of pixels and arrangement."""
        hashed = hashlib.sha256(f"{self.arrangement}{tuple(self.pixels.shape)}".encode())
        hashed.update(np.ascontiguousarray(self.pixels.numpy()).tobytes())
        return hashed.digest()


@dataclass(frozen=True, kw_only=True)
class TileReader(ImageReader):
    """Prepares images; defaults are those of the released models.

    Raises:
        ConfigError: a value that cannot be honoured.
    """

    tile_size: int
    max_num_tiles: int = 4
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Of red, green and blue, subtracted."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Divided by."""

    def __post_init__(self) -> None:
        for name, largest in (("tile_size", LARGEST_TILE), ("max_num_tiles", MOST_TILES)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise ConfigError(f"{name} must be a whole number from 1 to {largest}, not {value!r}", where=name)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not (isinstance(values, tuple) and len(values) == 3 and all(_is_share(v) for v in values)):
                raise ConfigError(f"{name} must be three numbers from 0 to 1, not {values!r}", where=name)
        if 0 in self.image_std:
            raise ConfigError("nothing is divided by 0", where="image_std")

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any], config: MllamaConfig) -> Self:
        """Read the contents of a `preprocessor_config.json`; what is left out is as in the released models.

        Raises:
            ConfigError: settings that cannot be honoured, or tiles other than the model's.
        """
        refuse_other_values(settings, HONOURED)
        warn_of_unknown(settings, {*HONOURED, *HARMLESS, "size", "max_image_tiles", "image_mean", "image_std"})
        reader = cls(tile_size=config.vision.image_size, max_num_tiles=config.vision.max_num_tiles)
        tile = {"height": reader.tile_size, "width": reader.tile_size}
        for name, own in (("size", tile), ("max_image_tiles", reader.max_num_tiles)):
            if settings.get(name) is not None and settings[name] != own:
                raise ConfigError(f"{name} is {settings[name]!r} where the model's is {own!r}", where=name)
        given = {name: settings[name] for name in ("image_mean", "image_std") if settings.get(name) is not None}
        changes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return replace(reader, **changes)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `preprocessor_config.json` that transformers and vLLM read."""
        return {
            "image_processor_type": "MllamaImageProcessor",
            "size": {"height": self.tile_size, "width": self.tile_size},
            "max_image_tiles": self.max_num_tiles,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "resample": BILINEAR,
            "rescale_factor": 1 / 255,
            **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad"), True),
        }

    def read(self, image: Image) -> ImageTiles:
        """An image in RGB, scaled into the arrangement of tiles that suits it best.

        What is left free at the right and at the bottom is black.
        """
        rows, columns = arrangement = best_arrangement(image.height, image.width, self.tile_size, self.max_num_tiles)
        height, width = scaled_size(image.height, image.width, (rows, columns), self.tile_size)
        canvas = np.zeros((rows * self.tile_size, columns * self.tile_size, 3), dtype=np.uint8)
        canvas[:height, :width] = np.asarray(image.resize((width, height), BILINEAR))
        # In double precision and rounded, then in single: the order in which transformers comes to its bits.
        values = (canvas.astype(np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(numbers, dtype=np.float32) for numbers in (self.image_mean, self.image_std))
        normal = torch.from_numpy((values - mean) / std)
        tiles = normal.view(rows, self.tile_size, columns, self.tile_size, 3).permute(0, 2, 4, 1, 3)
        return ImageTiles(tiles.reshape(rows * columns, 3, self.tile_size, self.tile_size), arrangement)


def best_arrangement(height: int, width: int, tile_size: int, max_num_tiles: int) -> tuple[int, int]:
    """Rows and columns of tiles that an image loses least in.

    The smallest enlargement if the image fits into any arrangement, else the smallest reduction; of arrangements that
    are equal in this, the one of fewest tiles.
    """
    counts = range(1, max_num_tiles + 1)
    arrangements = [(rows, columns) for rows in counts for columns in counts if rows * columns <= max_num_tiles]
    scales = {(r, c): min(r * tile_size / height, c * tile_size / width) for r, c in arrangements}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    return min((one for one in arrangements if scales[one] == best), key=lambda one: one[0] * one[1])


def scaled_size(height: int, width: int, arrangement: tuple[int, int], tile_size: int) -> tuple[int, int]:
    """Height and width of an image scaled into an arrangement, its proportions kept.

    A side grows up to one tile at most: a small image is not blown up to fill several.
    """
    rows, columns = arrangement
    target_height = min(max(height, tile_size), rows * tile_size)
    target_width = min(max(width, tile_size), columns * tile_size)
    by_height, by_width = target_height / height, target_width / width
    if by_width < by_height:
        return min(max(math.floor(height * by_width), 1), target_height), target_width
    return target_height, min(max(math.floor(width * by_height), 1), target_width)


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


HONOURED: dict[str, tuple[object, ...]] = {
    "resample": (BILINEAR,),
    "rescale_factor": (1 / 255,),
    **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad"), (True,)),
}
"""Keys that change what the model sees → the values that leave it as it is here."""

HARMLESS = {
    "image_processor_type",
    "processor_class",
    "feature_extractor_type",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "default_to_square",
    "crop_size",
    "do_center_crop",
    "pad_size",
    "image_seq_length",
}
"""Keys that leave it alone: how a library stores or names the reader, and what it has no use for."""
