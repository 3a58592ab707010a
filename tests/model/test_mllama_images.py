"""Images become the tiles that transformers makes of them, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import ConfigError
from camelid.model.mllama_images import TileReader, best_arrangement, scaled_size
from camelid.model.presets import PRESETS

Image = pytest.importorskip("PIL.Image")
READER = TileReader(tile_size=56)
CONFIG = PRESETS["llama-3.2-11b-vision"].config


def noise(width: int, height: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())


@pytest.mark.parametrize("tile_size", [56, 560])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (10, 9),
        (56, 56),
        (57, 30),
        (100, 500),
        (500, 100),
        (112, 112),
        (900, 800),
        (3, 700),
        (600, 3),
        (225, 113),
    ],
)
def test_tiles_equal_those_of_transformers(tile_size: int, size: tuple[int, int]) -> None:
    processors = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")
    reader, image = replace(READER, tile_size=tile_size), noise(*size)

    ours = reader.read(image)
    theirs = processors.MllamaImageProcessorPil(**reader.to_hf())(image, return_tensors="pt")

    num_tiles = len(ours.pixels)
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    assert theirs["aspect_ratio_mask"].sum() == num_tiles
    assert list(ours.arrangement) == ratios[theirs["aspect_ratio_ids"].item() - 1]
    assert torch.equal(ours.pixels, theirs["pixel_values"][0, 0, :num_tiles])
    assert not theirs["pixel_values"][0, 0, num_tiles:].any()


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 6))
def test_sizes_equal_those_of_transformers(height: int, width: int, max_num_tiles: int) -> None:
    theirs = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")

    arrangement = best_arrangement(height, width, 56, max_num_tiles)

    canvas = theirs.get_optimal_tiled_canvas(height, width, max_num_tiles, 56)
    assert tuple(56 * n for n in arrangement) == canvas
    assert scaled_size(height, width, arrangement, 56) == theirs.get_image_size_fit_to_canvas(
        height, width, *canvas, 56
    )


def test_a_small_image_grows_to_one_tile_and_leaves_the_rest_black() -> None:
    tiles = READER.read(Image.new("RGB", (20, 10), "white"))

    black = (0 - torch.tensor(READER.image_mean)) / torch.tensor(READER.image_std)
    assert tiles.arrangement == (1, 1)
    assert (tiles.pixels[0, :, :28] > 0).all()
    torch.testing.assert_close(tiles.pixels[0, :, 28:], black[:, None, None].expand(3, 28, 56))


def test_settings_travel() -> None:
    reader = replace(TileReader(tile_size=448), image_mean=(0.5, 0.4, 0.3))

    assert TileReader.from_hf(reader.to_hf(), CONFIG) == reader
    assert TileReader.from_hf({}, CONFIG) == TileReader(tile_size=448)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 560, "width": 560}}, "size"),
        ({"max_image_tiles": 9}, "max_image_tiles"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 3}, "resample"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_mean": "grey"}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "divided by 0"),
        ({"image_std": [0.5, 0.5, True]}, "image_std"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TileReader.from_hf(settings, CONFIG)
