"""Converting: every direction bit for bit, everything that travels along, and memory that does not grow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from camelid.base.errors import ConfigError, FormatError, NotFoundError, ResourceError, TokenizerError
from camelid.base.files import sha256
from camelid.checkpoint import convert, open_checkpoint, save_huggingface
from camelid.checkpoint.lineage import read_lineage, verify_lineage
from camelid.codecs.packed import PackedTensor
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer import load_tokenizer

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}ä\n"

CONFIG = replace(tiny_config(), vocab_size=32_000, num_key_value_heads=2, rms_norm_eps=1e-5, dtype="bfloat16")


def source_folder(folder: Path, config: LlamaConfig = CONFIG, **travelling: Any) -> Path:
    model = Llama.from_config(config)
    model.initialize(seed=1)
    save_huggingface(
        model.bfloat16(),
        folder,
        tokenizer=load_tokenizer(LLAMA_2),
        chat_template=TEMPLATE,
        generation_config={"bos_token_id": 1, "eos_token_id": [2], "temperature": 0.6},
        **travelling,
    )
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_folder(tmp_path_factory.mktemp("convert") / "source")


def weights(path: Path) -> dict[str, torch.Tensor]:
    with closing(open_checkpoint(path)) as checkpoint:
        read = {name: checkpoint.read(name) for name in checkpoint.tensors}
    assert not any(isinstance(value, PackedTensor) for value in read.values())
    return {name: value.clone() for name, value in read.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("path", [("meta",), ("gguf",), ("meta", "gguf"), ("gguf", "meta"), ("huggingface", "meta")])
def test_there_and_back_bit_for_bit(tmp_path: Path, source: Path, path: tuple[str, ...]) -> None:
    at = source
    for step, to in enumerate((*path, "huggingface")):
        assert convert(at, tmp_path / f"{step}", to=to)
        at = tmp_path / f"{step}"

    before, after = weights(source), weights(at)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in before)
    with closing(open_checkpoint(at)) as checkpoint:
        assert checkpoint.chat_template == TEMPLATE
        assert checkpoint.generation_config["eos_token_id"] == [2]
        assert checkpoint.load_tokenizer().encode("Once upon a time, 12 llamas") == load_tokenizer(LLAMA_2).encode(
            "Once upon a time, 12 llamas"
        )


def test_lineage_names_what_was_read_and_what_was_written(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "meta", to="meta", dtype="float16")
    convert(source, tmp_path / "model.gguf", to="gguf")

    lineage = verify_lineage(tmp_path / "meta")
    assert lineage.facts["dtype"] == "float16"
    origin = lineage.facts["converted_from"]
    assert (origin["name"], origin["format"]) == ("source", "huggingface")
    assert origin["files"]["model.safetensors"]["sha256"] == sha256(source / "model.safetensors")
    assert origin["files"]["lineage.json"]["sha256"] == sha256(source / "lineage.json")
    beside = json.loads((tmp_path / "model.gguf.lineage.json").read_text())
    assert beside["files"]["model.gguf"]["sha256"] == sha256(tmp_path / "model.gguf")
    assert beside["converted_from"] == origin


@pytest.mark.parametrize("to", ["huggingface", "meta", "gguf"])
def test_nothing_is_overwritten(tmp_path: Path, source: Path, to: str) -> None:
    convert(source, tmp_path / "written", to=to)
    hash_of = sha256 if to == "gguf" else lambda folder: read_lineage(folder).files
    before = hash_of(tmp_path / "written")

    with pytest.raises(ConfigError, match="something of this name already"):
        convert(source, tmp_path / "written", to=to)

    assert hash_of(tmp_path / "written") == before


def test_without_space_nothing_is_written(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    for to in ("huggingface", "meta", "gguf"):
        with pytest.raises(ResourceError, match="not enough disk space"):
            convert(source, tmp_path / to, to=to)

    assert not list(tmp_path.iterdir())


def test_what_is_lossy_says_so(tmp_path: Path, source: Path) -> None:
    assert convert(source, tmp_path / "as it is", to="huggingface", dtype="bfloat16")
    assert convert(source, tmp_path / "wider", to="huggingface", dtype="float32")
    assert not convert(source, tmp_path / "narrower", to="huggingface", dtype="float16")
    assert not convert(source, tmp_path / "quantised", to="gguf", quantize="q8_0")


def test_blocks_that_reach_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = Llama.from_config(CONFIG)
    model.initialize(seed=1)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.down_proj.weight")[0, 0] = 1e6
    save_huggingface(model, tmp_path / "large")
    convert(tmp_path / "large", tmp_path / "large.gguf", to="gguf", quantize="q8_0", tokenizer=False)

    with pytest.raises(ConfigError, match=r"too large for float16 \(model\.layers\.0\.mlp\.down_proj\.weight\)"):
        convert(tmp_path / "large.gguf", tmp_path / "x", to="huggingface", dtype="float16", tokenizer=False)

    assert not (tmp_path / "x").exists()
    assert convert(tmp_path / "large.gguf", tmp_path / "y", to="huggingface", tokenizer=False)


@pytest.mark.parametrize("to", ["huggingface", "meta", "gguf"])
def test_whole_numbers_are_no_weights(tmp_path: Path, source: Path, to: str) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].long()}, folder / "model.safetensors")

    with pytest.raises(FormatError, match=r"'model\.norm\.weight' holds int64"):
        convert(folder, tmp_path / "x", to=to)

    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"to": "ggml"}, NotFoundError, r"no format named 'ggml'(.|\n)*'gguf'"),
        ({"to": "meta", "quantize": "q8_0"}, ConfigError, "only GGUF files are written quantised"),
        ({"to": "gguf", "model_parallel": 2}, ConfigError, "only Meta's format"),
        ({"to": "huggingface", "dtype": "int8"}, ConfigError, "unknown dtype"),
        ({"to": "meta", "model_parallel": 3}, ConfigError, "cannot be cut into 3 shards"),
        ({"to": "meta", "model_parallel": 32}, ConfigError, "32 shards are more than the 16"),
    ],
)
def test_options_that_a_format_does_not_have(
    tmp_path: Path, source: Path, options: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        convert(source, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_a_source_without_a_tokenizer(tmp_path: Path, source: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*", "lineage.json"))

    with pytest.raises(TokenizerError, match=r"cannot be taken along(.|\n)*--without-tokenizer"):
        convert(bare, tmp_path / "meta", to="meta")
    convert(bare, tmp_path / "meta", to="meta", tokenizer=False)

    assert not list((tmp_path / "meta").glob("tokenizer*"))


def test_a_tokenizer_json_that_says_otherwise_is_not_replaced_by_the_model_beside_it(
    tmp_path: Path, source: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    definition = json.loads((other / "tokenizer.json").read_text())
    vocab = definition["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(definition))

    convert(other, tmp_path / "again", to="huggingface")

    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text()) == definition


def test_code_that_a_folder_brings_along_never_runs(tmp_path: Path, source: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(source, hostile)
    config = json.loads((hostile / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")

    with pytest.warns(UserWarning, match="auto_map"):
        convert(hostile, tmp_path / "written", to="huggingface")

    assert not (tmp_path / "canary").exists()
    assert not list((tmp_path / "written").glob("*.py"))
    assert "auto_map" not in (tmp_path / "written" / "config.json").read_text()


def test_the_huggingface_folder_opens_in_transformers(tmp_path: Path, source: Path) -> None:
    transformers = pytest.importorskip("transformers")
    convert(source, tmp_path / "meta", to="meta", model_parallel=2)
    convert(tmp_path / "meta", tmp_path / "hf", to="huggingface")

    ours, theirs = weights(source), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")

    assert all(torch.equal(value, ours[name]) for name, value in theirs.named_parameters())
    assert tokenizer.encode("Once upon a time") == load_tokenizer(LLAMA_2).encode("Once upon a time", bos=True)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "xä"


MEASURE = """
import sys
from pathlib import Path
from camelid.checkpoint import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), to=sys.argv[3], tokenizer=False)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("to", ["huggingface", "meta", "gguf"])
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path, to: str) -> None:
    """Twelve layers of 34 MB beside one: the peak stays within the largest tensor, 33 MB of embedding."""
    wide = replace(CONFIG, hidden_size=512, head_dim=128, intermediate_size=8192, num_attention_heads=4)
    peaks = []
    for layers in (1, 12):
        model = Llama.from_config(replace(wide, num_hidden_layers=layers)).bfloat16()
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
        save_huggingface(model, tmp_path / f"{layers}")
        del model
        command = [sys.executable, "-c", MEASURE, str(tmp_path / f"{layers}"), str(tmp_path / f"{layers}.out"), to]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) * 1024)

    assert peaks[1] - peaks[0] < 33 << 20
