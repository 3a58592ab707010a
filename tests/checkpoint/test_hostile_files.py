"""Damaged and hostile models of every format: opened and loaded as they are, or refused by name, in bounded memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meta_folder import meta_tensors, write_meta_folder
from tiny import tiny_model
from tiny_llama2c import llama2_c_file, tiny
from tiny_llama4 import LLAMA_4, llama4_folder

from camelid.base.errors import CamelidError, FormatError
from camelid.checkpoint import convert, load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.safetensors import SafetensorsFile
from fuzz_budget import budget

ROOM = 256 << 20
"""Bytes of address space that a tiny model may take, whatever its files claim."""


@contextmanager
def little_memory() -> Iterator[None]:
    """No more address space than there is now and `ROOM`: a large allocation fails instead of swapping."""
    if not sys.platform.startswith("linux"):
        yield
        return
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def huggingface(path: Path) -> Path:
    generation = {"eos_token_id": [2], "temperature": 0.5}
    save_huggingface(
        tiny_model(), path, chat_template="{{ messages }}", generation_config=generation, max_shard_bytes=20_000
    )
    return path


def meta(path: Path) -> Path:
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}
    return write_meta_folder(path, meta_tensors(tiny_model()), params, shards=2)


def gguf(path: Path) -> Path:
    convert(huggingface(path.with_name("of-gguf")), path / "model.gguf", to="gguf", tokenizer=False)
    return path


def gguf_llama4(path: Path) -> Path:
    source = llama4_folder(path.with_name("of-llama4"), replace(LLAMA_4, num_hidden_layers=2))
    convert(source, path / "model.gguf", to="gguf", tokenizer=False)
    return path


def meta_llama4(path: Path) -> Path:
    source = llama4_folder(path.with_name("of-meta"), replace(LLAMA_4, num_hidden_layers=2, head_dim=8))
    convert(source, path, to="meta", model_parallel=2, tokenizer=False)
    return path


def llama2_c(path: Path) -> Path:
    path.mkdir()
    (path / "model.bin").write_bytes(llama2_c_file(tiny()))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "huggingface": huggingface,
    "llama4": lambda path: llama4_folder(path, replace(LLAMA_4, num_hidden_layers=2)),
    "meta": meta,
    "meta llama4": meta_llama4,
    "gguf": gguf,
    "gguf llama4": gguf_llama4,
    "llama2.c": llama2_c,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound folder of every format."""
    return {name: make(tmp_path_factory.mktemp("sound") / "model") for name, make in MAKERS.items()}


def open_and_load(folder: Path) -> bool:
    """Do with a model what every verb does; whether it was accepted. Anything but a CamelidError is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with closing(open_checkpoint(folder)) as checkpoint:
                assert checkpoint.chat_template is None or isinstance(checkpoint.chat_template, str)
                dict(checkpoint.generation_config)
                model = load_model(checkpoint)
        except CamelidError:
            return False
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    return True


@pytest.mark.parametrize("format", MAKERS)
def test_the_sound_folders_are_accepted(sound: dict[str, Path], format: str) -> None:
    with little_memory():
        assert open_and_load(sound[format])


NUMBERS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    NUMBERS.map(lambda number: struct.pack("<Q", number)),
    NUMBERS.map(lambda number: struct.pack("<I", number % 2**32)),
)
HOSTILE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 3, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0]),
        st.text(max_size=6),
        st.sampled_from(["../config.json", "llama", "opt", "llama4", "yarn", "float8", "/etc/passwd"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


def damage(folder: Path, data: st.DataObject) -> None:
    """Change one file of a folder, or the sizes of two."""
    file = data.draw(st.sampled_from(sorted(file for file in folder.iterdir() if file.is_file())))
    content = file.read_bytes()
    if file.suffix == ".json" and data.draw(st.booleans()):
        settings = json.loads(content)
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(st.sampled_from(sorted(settings)) | st.text(max_size=8))
            settings[key] = data.draw(HOSTILE)
        file.write_text(json.dumps(settings))
        return
    changed = bytearray(content)
    ends = st.integers(0, min(600, len(changed))) | st.integers(max(0, len(changed) - 600), len(changed))
    for _ in range(data.draw(st.integers(1, 4))):
        at, piece = data.draw(ends | st.integers(0, len(changed))), data.draw(PIECES)
        changed[at : at + len(piece)] = piece
    if data.draw(st.integers(0, 4)) == 0:
        del changed[data.draw(st.integers(0, len(changed))) :]
    file.write_bytes(changed)


@pytest.mark.fuzz
@pytest.mark.parametrize("format", MAKERS)
@budget(60)
@given(data=st.data())
def test_damage_anywhere_is_accepted_or_refused(
    sound: dict[str, Path], tmp_path: Path, format: str, data: st.DataObject
) -> None:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound[format], folder)
    damage(folder, data)
    with little_memory():
        open_and_load(folder)


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


@pytest.mark.parametrize("value", [10**6, 10**9, 2**31, 2**63, 10**30])
@pytest.mark.parametrize("size", SIZES)
def test_absurd_sizes_in_a_config_cost_nothing(sound: dict[str, Path], tmp_path: Path, size: str, value: int) -> None:
    folder = shutil.copytree(sound["huggingface"], tmp_path / "absurd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {size: value}))
    with little_memory():
        assert not open_and_load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "generation_config.json"])
def test_a_key_that_is_there_twice_is_refused(sound: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sound["huggingface"], tmp_path / "twice")
    text = (folder / name).read_text()
    key = next(iter(json.loads(text)))
    (folder / name).write_text(f'{{"{key}": 1, ' + text.lstrip()[1:])
    with pytest.raises(FormatError, match=f"'{key}' twice") as caught, closing(open_checkpoint(folder)) as checkpoint:
        dict(checkpoint.generation_config)
    assert str(folder / name) in str(caught.value.where)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..\\x.safetensors"])
def test_an_index_cannot_lead_outside(sound: dict[str, Path], tmp_path: Path, shard: str) -> None:
    folder = shutil.copytree(sound["huggingface"], tmp_path / "in")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shutil.copy(folder / next(iter(index["weight_map"].values())), tmp_path / "x.safetensors")
    index["weight_map"] = dict.fromkeys(index["weight_map"], shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="outside the folder"):
        open_checkpoint(folder)


def test_a_zip_bomb_is_refused_unread(sound: dict[str, Path], tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte of `.pth`, and one whose directory lists the same bytes again and again."""
    folder = shutil.copytree(sound["meta"], tmp_path / "bomb")
    shard = folder / "consolidated.00.pth"
    with zipfile.ZipFile(shard) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(shard, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
        archive.writestr("consolidated.00/data/999", bytes(1 << 30))
    assert shard.stat().st_size < 2 << 20
    with little_memory(), pytest.raises(FormatError, match=r"compressed or encrypted(.|\n)*byte \d+"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "sizes",
    [(2**31 - 1,) * 7, (1, 1, 2**31 - 1, 1, 1, 1, 1), (8, 8, 1, 1, 1, -(2**31), 8), (0,) * 7, (-1,) * 7],
)
def test_a_llama2_c_header_of_absurd_sizes_is_none(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", *sizes) + bytes(4096))
    with little_memory(), pytest.raises(CamelidError):
        open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize("format", MAKERS)
def test_code_beside_a_model_never_runs(sound: dict[str, Path], tmp_path: Path, format: str) -> None:
    folder = shutil.copytree(sound[format], tmp_path / "model")
    canary = tmp_path / "canary"
    for name in ("modeling_llama", "configuration_llama", "tokenization_llama", "__init__", "conftest", "setup"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    auto_map = {"AutoConfig": "configuration_llama.C", "AutoModelForCausalLM": "modeling_llama.M"}
    if (folder / "config.json").exists():
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config |= {
            "auto_map": auto_map,
            "trust_remote_code": True,
            "custom_pipelines": {"x": {"impl": "modeling_llama.M"}},
        }
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_llama.T", None]}})
    )

    open_and_load(folder)

    assert not canary.exists()


def test_a_template_that_attacks_is_carried_as_a_text_and_never_rendered(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    attack = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "canary") + "') }}"
    folder = shutil.copytree(sound["huggingface"], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(attack)

    for to in ("gguf", "meta", "huggingface"):
        convert(folder, tmp_path / to, to=to, tokenizer=False)
        with closing(open_checkpoint(tmp_path / to)) as checkpoint:
            assert checkpoint.chat_template == attack

    assert not (tmp_path / "canary").exists()


def test_a_model_larger_than_memory_is_refused_with_the_numbers(
    sound: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camelid.checkpoint.load.available_memory", lambda: 10_000)
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("a tensor was read"))
    for format in ("huggingface", "llama4"):
        with pytest.raises(CamelidError, match=r"take .*kB as .*, 10\.0 kB are free") as caught:
            load_model(open_checkpoint(sound[format]), dtype=torch.float32)
        assert "bfloat16" in str(caught.value.hint)
