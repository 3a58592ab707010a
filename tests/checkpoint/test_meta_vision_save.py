"""Meta's folders of Llama 3.2 Vision, written: the files themselves, and what Meta's own code makes of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_meta_vision import PARAMS, meta_tensors, write
from tiny_mllama import MLLAMA, tiny_mllama

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint import convert, load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.meta_vision import crossing_layers
from camelid.model.attention import PackedContext
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.model.mllama_images import ImageTiles
from camelid.model.rope import LinearRope


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mllama") / "hub"
    save_huggingface(tiny_mllama(replace(MLLAMA, num_key_value_heads=4)), folder)
    return folder


def to_meta(source: Path, target: Path, **options: Any) -> Path:
    convert(source, target, to="meta", tokenizer=False, **options)
    return target


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return tensors


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_files_are_those_of_a_release(hub_folder: Path, shards: int, tmp_path: Path) -> None:
    written = to_meta(hub_folder, tmp_path / "meta", model_parallel=shards)

    with closing(open_checkpoint(hub_folder)) as checkpoint:
        model = load_model(checkpoint)
    assert isinstance(model, Mllama)
    released = {name: value for name, value in meta_tensors(model).items() if name != "text_model.rope.freqs"}
    expected = write(tmp_path / "expected", released, shards)
    for rank in range(shards):
        ours = tensors_of(written / f"consolidated.{rank:02}.pth")
        theirs = tensors_of(expected / ("consolidated.pth" if shards == 1 else f"consolidated.{rank:02}.pth"))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    params = json.loads((written / "params.json").read_text())
    assert {name: params[name] for name in PARAMS if name in params and name.startswith("vision")} == {
        name: value for name, value in PARAMS.items() if name.startswith("vision")
    }
    assert (params["n_layers"], params["dim"], params["use_scaled_rope"]) == (4, 64, True)


def test_what_metas_files_leave_open_is_kept_beside_them(tmp_path: Path) -> None:
    config = replace(
        MLLAMA,
        max_position_embeddings=4096,
        eos_token_id=(3, 4),
        pad_token_id=5,
        initializer_range=0.5,
        vision=replace(MLLAMA.vision, initializer_range=0.25),
    )
    settings = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.25]}
    save_huggingface(tiny_mllama(config), tmp_path / "hub", preprocessor_config=settings)

    folder = to_meta(tmp_path / "hub", tmp_path / "meta")

    with closing(open_checkpoint(folder)) as checkpoint:
        assert MllamaConfig.from_hf(checkpoint.config) == config
        assert settings.items() <= checkpoint.preprocessor_config.items()


def test_a_config_that_contradicts_the_files_is_refused(hub_folder: Path, tmp_path: Path) -> None:
    folder = to_meta(hub_folder, tmp_path / "meta")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-6
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(FormatError, match=r"disagree on rms_norm_eps: 1e-06 and 1e-05"):
        open_checkpoint(folder).config  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, cross_attention_layers=(1, 3)), r"attend to images at \(1, 3\)"),
        (lambda c: replace(c, cross_attention_layers=()), r"attend to images at \(\)"),
        (lambda c: replace(c, image_token_index=c.vocab_size + 1), "129 as the image token"),
        (lambda c: replace(c, vision=replace(c.vision, attention_heads=2)), "attention_heads 2"),
        (lambda c: replace(c, vision=replace(c.vision, norm_eps=1e-6)), "norm_eps 1e-06"),
        (
            lambda c: replace(c, vision=replace(c.vision, intermediate_layers_indices=(3, 7, 15, 23, 31))),
            r"intermediate_layers_indices \(3, 7, 15, 23, 31\)",
        ),
        (lambda c: replace(c, rope_parameters=LinearRope(rope_theta=5e5, factor=2.0)), "rope scaling"),
    ],
)
def test_what_the_format_has_no_place_for_is_refused(
    change: Callable[[MllamaConfig], MllamaConfig], message: str, tmp_path: Path
) -> None:
    save_huggingface(tiny_mllama(change(MLLAMA)), tmp_path / "hub")

    with pytest.raises(ConfigError, match=message):
        to_meta(tmp_path / "hub", tmp_path / "meta")
    assert not (tmp_path / "meta").exists()


@pytest.mark.parametrize("shards", [3, 8, 16])
def test_what_cannot_be_cut_is_refused(hub_folder: Path, shards: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot be cut into {shards} shards"):
        to_meta(hub_folder, tmp_path / "meta", model_parallel=shards)


@pytest.mark.parametrize("row", [0, 1, 3])
@pytest.mark.parametrize("table", ["gated_positional_embedding.tile", "post_tile_positional"])
def test_tiles_that_differ_by_arrangement_are_refused(table: str, row: int, tmp_path: Path) -> None:
    model = tiny_mllama()
    name = next(name for name in model.state_dict() if table in name and name.endswith("embedding.weight"))
    model.get_parameter(name).data[row, -1] += 1
    save_huggingface(model, tmp_path / "hub")

    with pytest.raises(ConfigError, match="one vector for a tile's place") as caught:
        to_meta(tmp_path / "hub", tmp_path / "meta")
    assert caught.value.where == name


def test_sizes_that_metas_code_has_in_itself_are_warned_of(
    hub_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="camelid"):
        to_meta(hub_folder, tmp_path / "meta")

    assert "no image encoder of hidden_size 32, intermediate_size 48, num_global_layers 2" in caplog.text


@given(st.integers(1, 130), st.integers(1, 130))
def test_layers_that_attend_to_images_are_placed_from_the_last(num_layers: int, num_crossing: int) -> None:
    layers, step = list(range(num_layers)), math.ceil(num_layers / num_crossing)
    followed = layers[::-1][::step][:num_crossing][::-1]  # as Meta's code has it: each is before one of these
    order = [kind for layer in layers for kind in (["crossing"] * (layer in followed) + ["plain"])]

    assert crossing_layers(num_layers, num_crossing) == tuple(i for i, kind in enumerate(order) if kind == "crossing")


@pytest.fixture
def metas_vision(without_fairscale: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Meta's multimodal model on one process, with an image encoder of our size."""
    pytest.importorskip("llama_models", reason="Meta's reference code is not installed")
    transform = ModuleType("llama_models.llama3.multimodal.image_transform")  # it needs torchvision
    transform.VariableSizeImageTransform = lambda size: list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, transform.__name__, transform)
    monkeypatch.delitem(sys.modules, "llama_models.llama3.multimodal.model", raising=False)
    from llama_models.llama3.multimodal import model as theirs

    for name in ("reduce_from_tensor_model_parallel_region", "gather_from_tensor_model_parallel_region"):
        monkeypatch.setattr(theirs, name, lambda tensor: tensor)
    vision = MLLAMA.vision
    sizes = {"width": vision.hidden_size, "mlp_ratio": vision.intermediate_size / vision.hidden_size}
    whole, linear = theirs.VisionEncoder, theirs.ColumnParallelLinear

    def encoder(*, n_global_layers: int, **settings: Any) -> Any:
        return whole(n_global_layers=vision.num_global_layers, **sizes, **settings)

    def projection(inputs: int, outputs: int, **settings: Any) -> Any:
        return linear(vision.output_size if inputs == 7680 else inputs, outputs, **settings)

    monkeypatch.setattr(theirs, "VisionEncoder", encoder)
    monkeypatch.setattr(theirs, "ColumnParallelLinear", projection)
    return theirs


@torch.inference_mode()
def test_metas_own_model_computes_the_same_from_what_we_write(
    hub_folder: Path, metas_vision: Any, tmp_path: Path
) -> None:
    from llama_models.llama3.args import ModelArgs

    folder = to_meta(hub_folder, tmp_path / "meta")
    params = json.loads((folder / "params.json").read_text())
    theirs = metas_vision.CrossAttentionTransformer(ModelArgs(max_seq_len=16, max_batch_size=1, **params))
    theirs.load_state_dict(tensors_of(folder / "consolidated.00.pth"), strict=True)
    theirs.setup_cache(1, torch.device("cpu"), torch.float32)
    with closing(open_checkpoint(folder)) as checkpoint:
        ours = load_model(checkpoint)
    assert isinstance(ours, Mllama)
    ids, arrangement = [5, 77, 128, 90, 3, 41], (1, 3)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(3))

    image = torch.zeros(1, 1, 4, 3, 28, 28)
    image[0, 0, :3] = pixels
    seen = theirs.vision_model(image, torch.tensor([[arrangement]]))
    caches = torch.stack([layer.compute_xattn_kv_cache(seen.flatten(1, 3)) for layer in crossing(theirs)])
    mask = metas_vision._pad_masks([[[2, len(ids)]]], [[3]], len(ids), 4)
    mask, rows = theirs.text_model._get_xattn_mask(len(ids), "cpu", torch.float32, seen, mask)
    positions = torch.arange(len(ids))
    expected = theirs(positions, torch.tensor([ids]), mask, rows, caches)[0]

    memory = ours.image_memory([ImageTiles(pixels, arrangement)], [2])
    context = PackedContext([len(ids)], images=[memory])
    logits = ours.logits(ours(torch.tensor(ids), context.positions(), context))
    assert torch.allclose(logits, expected, atol=1e-4, rtol=1e-5)


def crossing(theirs: Any) -> Any:
    return theirs.text_model.cross_attention_layers
