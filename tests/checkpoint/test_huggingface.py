from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from tiny import tiny_model

from camelid.base.errors import CamelidError, FormatError, NotFoundError
from camelid.checkpoint import load_model, save_huggingface
from camelid.checkpoint.huggingface import HuggingFaceCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_huggingface(tiny_model(), tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_huggingface(tiny_model(), tmp_path / "sharded", max_shard_bytes=10_000)
    return tmp_path / "sharded"


def edit_index(folder: Path, **changes: str | None) -> None:
    """Put tensors into other shards; None takes one out."""
    index = json.loads((folder / INDEX).read_text())
    for name, shard in changes.items():
        index["weight_map"].pop(name, None)
        if shard is not None:
            index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


def test_every_tensor_is_described_without_reading_it(sharded: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(sharded)
    info = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]

    assert checkpoint.tensors.keys() == dict(tiny_model().named_parameters()).keys()
    assert (info.shape, info.format, info.num_bytes) == ((32, 64), "float32", 32 * 64 * 4)
    assert checkpoint.format == "huggingface"


def test_opening_a_folder_never_runs_its_code(single: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    (single / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((single / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil")
    (single / "config.json").write_text(json.dumps(config))

    with pytest.warns(UserWarning, match="unknown key 'auto_map'"):
        load_model(HuggingFaceCheckpoint(single))

    assert not canary.exists()


@pytest.mark.parametrize(
    "shard",
    [
        "../single/model.safetensors",
        "/etc/model.safetensors",
        "..\\x.safetensors",
        "a/../../x.safetensors",
        "C:x.safetensors",
    ],
)
def test_a_shard_outside_the_folder_is_refused(sharded: Path, single: Path, shard: str) -> None:
    edit_index(sharded, **{"model.norm.weight": shard})

    with pytest.raises(FormatError, match="leads outside the folder"):
        HuggingFaceCheckpoint(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_link_that_leads_outside_the_folder_is_refused(single: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((single / name).read_bytes() if (single / name).exists() else b"{}")
    (single / name).unlink(missing_ok=True)
    (single / name).symlink_to(tmp_path / name)

    with pytest.raises(FormatError, match="link to a file outside the folder"):
        _ = HuggingFaceCheckpoint(single).generation_config


@pytest.mark.parametrize("shared", [False, True])
def test_the_hub_caches_own_links_are_followed(single: Path, tmp_path: Path, shared: bool) -> None:
    cache = tmp_path / "hub"
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (cache / "blobs" / "00").mkdir(parents=True)
    for number, file in enumerate(sorted(single.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        if shared:
            store = cache / "blobs" / "00" / f"{number:064x}"
            store.write_bytes(file.read_bytes())
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))

    model = load_model(HuggingFaceCheckpoint(snapshot))

    assert torch.equal(model.get_parameter("model.norm.weight"), tiny_model().get_parameter("model.norm.weight"))


def test_a_shard_whose_name_no_file_system_takes_is_missing(sharded: Path) -> None:
    edit_index(sharded, **{"model.norm.weight": "x" * 300 + ".safetensors"})

    with pytest.raises(NotFoundError, match="is missing"):
        HuggingFaceCheckpoint(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / sorted(path.name for path in sharded.glob("*.safetensors"))[1]).unlink()

    with pytest.raises(NotFoundError, match=r"the shard 'model-00002-of-\d+\.safetensors' is missing"):
        HuggingFaceCheckpoint(sharded)


def test_a_tensor_that_the_index_lists_must_be_there(sharded: Path) -> None:
    edit_index(sharded, **{"model.extra.weight": next(sharded.glob("*.safetensors")).name})

    with pytest.raises(FormatError, match=r"'model\.extra\.weight' is listed in .* but not there"):
        HuggingFaceCheckpoint(sharded)


def test_a_tensor_that_is_there_must_be_in_the_index(tmp_path: Path) -> None:
    save_huggingface(tiny_model(), tmp_path / "few", max_shard_bytes=50_000)
    edit_index(tmp_path / "few", **{"model.norm.weight": None})

    with pytest.raises(FormatError, match=r"'model\.norm\.weight' is there but .* does not list it"):
        HuggingFaceCheckpoint(tmp_path / "few")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    one = torch.ones(1)
    safetensors.torch.save_file({"x": one, "y": one.clone()}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"y": one, "z": one.clone()}, tmp_path / "b.safetensors")
    (tmp_path / "config.json").write_text("{}")
    weight_map = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    with pytest.raises(FormatError, match="'y' is there but"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "y.bin"}}'],
)
def test_a_broken_index_is_refused(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)

    with pytest.raises(FormatError, match="the index"):
        HuggingFaceCheckpoint(sharded)


@pytest.mark.parametrize("config", ["", "[]", "{", "\ufeff", "[" * 60_000, b"\xff\xfe"])
def test_a_broken_config_is_refused(single: Path, config: str | bytes) -> None:
    (single / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())

    with pytest.raises(FormatError, match=r"JSON|UTF-8"):
        HuggingFaceCheckpoint(single)


def test_a_truncated_shard_is_refused_when_the_folder_is_opened(sharded: Path) -> None:
    shard = next(sharded.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(FormatError, match="ends at byte"):
        HuggingFaceCheckpoint(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_weights_that_could_run_code_are_refused(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)

    with pytest.raises(NotFoundError, match=r"can run code") as caught:
        HuggingFaceCheckpoint(single)

    assert caught.value.hint is not None
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(single: Path, missing: str) -> None:
    (single / missing).unlink()

    with pytest.raises(NotFoundError, match=missing):
        HuggingFaceCheckpoint(single)


def write_template(folder: Path, name: str, template: object) -> None:
    text = template if name.endswith(".jinja") else json.dumps({"chat_template": template})
    (folder / name).write_text(str(text))


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"chat_template.jinja": "a"}, "a"),
        ({"chat_template.json": "b"}, "b"),
        ({"tokenizer_config.json": "c"}, "c"),
        ({"tokenizer_config.json": None}, None),
        ({"tokenizer_config.json": NAMED}, "plain"),
        ({"chat_template.jinja": "a", "chat_template.json": "b", "tokenizer_config.json": "c"}, "a"),
        ({"chat_template.json": "b", "tokenizer_config.json": "c"}, "b"),
    ],
)
def test_where_the_chat_template_comes_from(single: Path, files: dict[str, object], expected: str | None) -> None:
    for name, template in files.items():
        write_template(single, name, template)

    assert HuggingFaceCheckpoint(single).chat_template == expected


@pytest.mark.parametrize("template", [NAMED[:1], 3, [3], [{"name": "default"}], {"default": "x"}])
def test_a_template_that_cannot_be_chosen_is_an_error(single: Path, template: object) -> None:
    write_template(single, "tokenizer_config.json", template)

    with pytest.raises(CamelidError, match="template"):
        _ = HuggingFaceCheckpoint(single).chat_template
