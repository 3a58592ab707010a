from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import tokenizers
import torch
from tiny import IDS, logits, tiny_model

import camelid
from camelid.base.errors import ConfigError, ResourceError
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.lineage import read_lineage, verify_lineage
from camelid.codecs import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

SHARDED = 10_000
"""Bytes of a shard that cut the tiny model into several."""


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, SHARDED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path: Path, tied: bool, max_shard_bytes: int, dtype: torch.dtype
) -> None:
    model = tiny_model(tied=tied, dtype=dtype)

    save_huggingface(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    with closing(open_checkpoint(tmp_path / "saved")) as checkpoint:
        again = load_model(checkpoint, dtype=dtype)

    parameters = dict(model.named_parameters())
    assert dict(again.named_parameters()).keys() == parameters.keys()
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in again.named_parameters())
    assert again.config.to_hf() == model.config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, SHARDED])
def test_transformers_opens_what_we_save_with_equal_logits(tmp_path: Path, tied: bool, max_shard_bytes: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_model(tied=tied)
    save_huggingface(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)

    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")

    assert peer.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(peer(IDS[None]).logits[0], logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
def test_from_transformers_and_back(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**tiny_model(tied=tied).config.to_hf())
    theirs = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)

    with closing(open_checkpoint(tmp_path / "theirs")) as checkpoint:
        ours = load_model(checkpoint, dtype=torch.bfloat16)
    save_huggingface(ours, tmp_path / "ours", max_shard_bytes=SHARDED)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")

    assert back.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), back.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(back(IDS[None]).logits, theirs(IDS[None]).logits)


def test_shards_are_named_indexed_and_no_larger_than_asked(tmp_path: Path) -> None:
    model = tiny_model()
    save_huggingface(model, tmp_path / "saved", max_shard_bytes=SHARDED)

    names = shards(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())

    assert names == [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    assert len(names) > 2
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    for name in names:
        held = safetensors.torch.load_file(tmp_path / "saved" / name)
        assert {tensor for tensor, shard in index["weight_map"].items() if shard == name} == held.keys()
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= SHARDED


def test_a_tied_weight_is_written_once(tmp_path: Path) -> None:
    save_huggingface(tiny_model(tied=True), tmp_path / "saved")

    held = safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors")

    assert "model.embed_tokens.weight" in held
    assert "lm_head.weight" not in held


def test_weights_are_converted_to_the_dtype_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    save_huggingface(model, tmp_path / "saved", dtype=torch.bfloat16)

    held = safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors")

    assert all(torch.equal(tensor, model.get_parameter(name).bfloat16()) for name, tensor in held.items())
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_packed_weights_are_written_unpacked(tmp_path: Path) -> None:
    model = tiny_model()
    codec = FORMATS.load("q8_0")
    projection = model.model.layers[0].mlp.up_proj
    projection.load_packed(codec.pack(projection.weight.detach()))

    save_huggingface(model, tmp_path / "saved")

    with closing(open_checkpoint(tmp_path / "saved")) as checkpoint:
        again = load_model(checkpoint)
    expected = codec.unpack(projection.packed)
    assert torch.equal(again.get_parameter("model.layers.0.mlp.up_proj.weight"), expected)


def test_template_generation_config_and_lineage_travel_along(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}\r\n"
    save_huggingface(
        tiny_model(),
        tmp_path / "saved",
        chat_template=template,
        generation_config={"temperature": 0.6},
        lineage={"parent": "abc"},
    )

    with closing(open_checkpoint(tmp_path / "saved")) as checkpoint:
        assert checkpoint.chat_template == template
        assert checkpoint.generation_config == {"temperature": 0.6}
    assert read_lineage(tmp_path / "saved").facts == {"parent": "abc"}
    assert verify_lineage(tmp_path / "saved").files.keys() == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    save_huggingface(tiny_model(), tmp_path / "one")
    save_huggingface(tiny_model(), tmp_path / "two")

    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_an_earlier_save_is_replaced_as_a_whole(tmp_path: Path) -> None:
    save_huggingface(tiny_model(), tmp_path / "saved", max_shard_bytes=SHARDED, chat_template="x")
    save_huggingface(tiny_model(), tmp_path / "saved")

    assert shards(tmp_path / "saved") == ["model.safetensors"]
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_model_can_be_saved_over_the_folder_it_is_a_view_of(tmp_path: Path) -> None:
    save_huggingface(tiny_model(), tmp_path / "saved")
    with closing(open_checkpoint(tmp_path / "saved")) as checkpoint:
        model = load_model(checkpoint)

    save_huggingface(model, tmp_path / "saved", dtype=torch.bfloat16)

    assert torch.equal(logits(model), logits(tiny_model()))


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match=r"no earlier save: thesis\.txt"):
        save_huggingface(tiny_model(), tmp_path)

    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_added_to_an_earlier_save_is_never_lost(tmp_path: Path) -> None:
    save_huggingface(tiny_model(), tmp_path / "saved")
    (tmp_path / "saved" / "notes.md").write_text("mine")

    with pytest.raises(ConfigError, match=r"notes\.md"):
        save_huggingface(tiny_model(), tmp_path / "saved")

    assert (tmp_path / "saved" / "notes.md").read_text() == "mine"


def test_no_disk_space_leaves_the_earlier_save_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_huggingface(tiny_model(), tmp_path / "saved")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 0))

    with pytest.raises(ResourceError, match="not enough disk space"):
        save_huggingface(tiny_model(tied=True), tmp_path / "saved")

    verify_lineage(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_disk_that_fills_up_leaves_the_earlier_save_as_it_was(tmp_path: Path) -> None:
    """A real limit, set by the kernel: writing the weights fails in the middle of the file."""
    pytest.importorskip("resource")
    save_huggingface(tiny_model(), tmp_path / "saved")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from camelid.base.errors import ResourceError\n"
        "from camelid.checkpoint import save_huggingface\n"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "from tiny import tiny_model\n"
        "model = tiny_model(tied=True)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    save_huggingface(model, Path(sys.argv[1]))\n"
        "except ResourceError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], check=False)

    assert done.returncode == 2
    verify_lineage(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocabulary").mkdir()
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a llama and another llama"], vocab_size=280, show_progress=False)
    bpe.save(str(tmp_path / "vocabulary" / "tokenizer.json"))
    tokenizer = camelid.load_tokenizer(tmp_path / "vocabulary")

    save_huggingface(tiny_model(), tmp_path / "saved", tokenizer=tokenizer)

    text = "another alpaca, naïve"
    with closing(open_checkpoint(tmp_path / "saved")) as checkpoint:
        assert checkpoint.load_tokenizer().encode(text) == tokenizer.encode(text)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert theirs.encode(text) == tokenizer.encode(text)
