"""A checkpoint that reads images too opens as the language model in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.model.attention import PackedContext
from camelid.model.llama4 import Llama4

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Llama 4 with its eyes, as transformers writes it, and the model itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Llama4Config(text_config=TEXT, vision_config=VISION)
    model = transformers.Llama4ForConditionalGeneration(config).eval()
    for parameter in model.language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("llama4")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def with_settings(llama4: tuple[Path, Any], tmp_path: Path) -> Callable[..., Path]:
    """The folder with other settings in its outer config."""

    def change(**settings: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(llama4[0], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
        return folder

    return change


@torch.inference_mode()
def test_the_text_is_read_and_the_images_are_left_out_with_a_warning(llama4: tuple[Path, Any]) -> None:
    folder, theirs = llama4
    with pytest.warns(UserWarning, match=r"the \d\d tensors that read images are left out"):
        opened = open_checkpoint(folder)
    with closing(opened) as checkpoint:
        model = load_model(checkpoint)
        names = set(checkpoint.tensors)
    ids = torch.randint(0, 96, (40,))
    context = PackedContext([40])

    ours = model.logits(model(ids, context.positions(), context))

    assert isinstance(model, Llama4)
    assert names == set(model.state_dict())
    # The text model inside: around it, transformers 5.24 fails where there is no image.
    assert (ours - theirs.language_model(input_ids=ids[None]).logits[0]).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore:.*read images:UserWarning")
def test_what_is_saved_is_a_text_model_that_transformers_opens(llama4: tuple[Path, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with closing(open_checkpoint(llama4[0])) as checkpoint:
        model = load_model(checkpoint)

    save_huggingface(model, tmp_path / "text")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")

    assert type(theirs).__name__ == "Llama4ForCausalLM"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in theirs.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*read images:UserWarning")
def test_quantised_weights_are_refused_though_only_the_outer_config_says_so(
    with_settings: Callable[..., Path],
) -> None:
    folder = with_settings(quantization_config={"quant_method": "compressed-tensors"})

    with closing(open_checkpoint(folder)) as checkpoint, pytest.raises(ConfigError, match="quantised"):
        load_model(checkpoint)


def test_a_config_without_a_text_is_refused(with_settings: Callable[..., Path]) -> None:
    with pytest.raises(FormatError, match="text_config"):
        open_checkpoint(with_settings(text_config=None))


@pytest.mark.filterwarnings("ignore:.*read images:UserWarning")
def test_a_tensor_of_no_known_part_is_refused(llama4: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "more"
    shutil.copytree(llama4[0], folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "audio_model.weight": torch.zeros(2)}, folder / "model.safetensors")

    with closing(open_checkpoint(folder)) as checkpoint, pytest.raises(FormatError, match="audio_model"):
        load_model(checkpoint)
