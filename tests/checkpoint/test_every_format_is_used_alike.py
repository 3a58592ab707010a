"""The verbs and `camelid.load` take a model in any format, under any name, and get the same from it."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from hub_server import serve
from huggingface_hub import constants
from tiny_llama2c import llama2_c_file

import camelid
from camelid.base.errors import ConfigError
from camelid.checkpoint import convert, load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.pull import pull
from camelid.cli.main import main
from camelid.model.linear import Matrix
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer import load_tokenizer
from camelid.tokenizer.chat_llama2 import Llama2Format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LLAMA_2 = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"
CONFIG = LlamaConfig(
    vocab_size=32_000,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
)
LOSSLESS = (*("huggingface", "sharded", "meta", "meta shards", "gguf", "gguf folder", "gguf parts", "llama2.c", "hub"),)
QUANTISED = ("gguf q8_0", "gguf q4_0")
FORMATS = (*LOSSLESS, *QUANTISED)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One model in every format, under names that say nothing."""
    at = tmp_path_factory.mktemp("formats")
    model = Llama.from_config(CONFIG)
    model.initialize(seed=4)
    parts = {"tokenizer": load_tokenizer(LLAMA_2), "chat_template": Llama2Format.template}
    save_huggingface(model, at / "a.gguf", **parts)
    save_huggingface(model, at / "b.pth", max_shard_bytes=100_000, **parts)
    convert(at / "a.gguf", at / "c.safetensors", to="meta")
    convert(at / "a.gguf", at / "d", to="meta", model_parallel=2)
    convert(at / "a.gguf", at / "e.bin", to="gguf")
    (at / "f").mkdir()
    shutil.copy(at / "e.bin", at / "f" / "weights")
    (at / "g").mkdir()
    (at / "g" / "model.gguf").write_bytes(llama2_c_file(model))
    shutil.copy(LLAMA_2, at / "g" / "tokenizer.model")
    convert(at / "a.gguf", at / "h", to="gguf", quantize="q8_0")
    convert(at / "a.gguf", at / "i", to="gguf", quantize="q4_0")
    for name in ("h", "i"):
        convert(at / name, at / f"{name} unpacked", to="huggingface")
    (at / "j").mkdir()
    first = split(at / "e.bin", at / "j" / "model.gguf")
    names = {"huggingface": "a.gguf", "sharded": "b.pth", "meta": "c.safetensors", "meta shards": "d", "gguf": "e.bin"}
    names |= {"gguf folder": "f", "llama2.c": "g/model.gguf", "gguf q8_0": "h", "gguf q4_0": "i"}
    names |= {"gguf q8_0, unpacked": "h unpacked", "gguf q4_0, unpacked": "i unpacked"}
    paths = {format: str(at / name) for format, name in names.items()} | {"gguf parts": str(first)}
    with serve() as hub, pytest.MonkeyPatch.context() as patch:
        hub.repositories["org/tiny"] = {"main": {one.name: one.read_bytes() for one in (at / "b.pth").iterdir()}}
        template = "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        patch.setattr(constants, "HF_HUB_CACHE", str(at / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(at / "token"))
        pull("org/tiny")
        yield paths | {"hub": "org/tiny"}


def split(whole: Path, target: Path) -> Path:
    """The model in parts, as llama.cpp's gguf-split makes them; the first."""
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=8)
    for name, field in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.iterdir())[0]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`camelid` with arguments, in an empty folder; what it writes to standard output."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert not caught.value.code, said.err
        return said.out

    return command


def test_every_format_comes_in_several_files_or_says_that_it_does_not(models: dict[str, str]) -> None:
    assert len(list(Path(models["gguf parts"]).parent.iterdir())) > 1
    assert len(list(Path(models["sharded"]).glob("*.safetensors"))) > 1
    assert len(list(Path(models["meta shards"]).glob("*.pth"))) == 2


@pytest.mark.parametrize("format", LOSSLESS)
def test_load_gives_the_same_reply(models: dict[str, str], format: str) -> None:
    prompt = "The river rises in the hills"
    settings = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    expected = camelid.load(models["huggingface"], dtype="float32").generate(prompt, **settings)
    reply = camelid.load(models[format], dtype="float32").generate(prompt, **settings)
    assert reply.token_ids == expected.token_ids


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao; runs where camelid[torchao] is installed")
@pytest.mark.parametrize("format", ["huggingface", "gguf"])
def test_projections_are_quantised_on_loading(models: dict[str, str], format: str) -> None:
    llm = camelid.load(models[format], dtype="float32", device="cpu", quantize="int8")
    packed = {m.packed.format for m in llm.model.modules() if isinstance(m, Matrix) and m.packed is not None}
    assert packed == {"int8"}
    assert len(llm.generate("The river", max_tokens=5, ignore_eos=True).token_ids) == 5
    with pytest.raises(ConfigError, match="cannot be kept packed and become int8"):
        camelid.load(models[format], packed=True, quantize="int8")


def tokenizer(run: Callable[..., str], path: str) -> str:
    return run("tokenizer", "encode", path, "The river")


def chat(run: Callable[..., str], path: str, *options: str) -> str:
    limits = ["--max-tokens", "8", "--temperature", "0", *options]
    return run("chat", path, "--prompt", "Where is the river?", "--dtype", "float32", "--device", "cpu", *limits)


def evaluate(run: Callable[..., str], path: str) -> float:
    Path("a.txt").write_text("The river rises in the hills.")
    tasks = '[[tasks]]\ntask = "bits_per_byte"\ntexts = ["a.txt"]\n'
    Path("e.toml").write_text(f"model = {json.dumps(path)}\n{tasks}")
    run("eval", "e.toml", "-o", "results", "--set", "device=cpu", "--set", "dtype=float32")
    results = json.loads(Path("results/results.json").read_text())
    return float(results["results"][0]["measurement"]["metrics"][0]["value"])


def sft(run: Callable[..., str], path: str) -> list[float]:
    """The losses of two steps."""
    talk = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the hills."}]
    Path("talks.jsonl").write_text(json.dumps({"messages": talk}))
    Path("s.toml").write_text(f"model = {json.dumps(path)}\ndevice = 'cpu'\n[data]\nsources = ['talks.jsonl']\n")
    settings = ["data.sequence_length=32", "data.batch_size=1", "training.steps=2", "training.schedule.warmup_steps=1"]
    settings += ["chat_format=llama2"]  # of llama2.c's file nothing tells it
    out = run("sft", "s.toml", "-o", "run", *(part for one in settings for part in ("--set", one)))
    assert camelid.load(out.partition(": ")[2].strip(), device="cpu").generate(talk[:1], max_tokens=2).token_ids
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


VERBS = {"tokenizer": tokenizer, "chat": chat, "eval": evaluate, "sft": sft}


PAIRS = [(format, verb) for format in FORMATS[1:] for verb in VERBS if (format, verb) != ("llama2.c", "chat")]


def folder_of(format: str) -> str:
    """The Hugging Face folder with the same numbers."""
    return f"{format}, unpacked" if format in QUANTISED else "huggingface"


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, str], object]:
    """What each verb gives for a folder; filled by the first test that asks."""
    return {}


@pytest.mark.parametrize(("format", "verb"), PAIRS)
def test_the_verbs_give_the_same(
    models: dict[str, str],
    expected: dict[tuple[str, str], object],
    run: Callable[..., str],
    format: str,
    verb: str,
) -> None:
    folder = folder_of(format)
    if (folder, verb) not in expected:
        expected[folder, verb] = VERBS[verb](run, models[folder])
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("results", ignore_errors=True)
    given = VERBS[verb](run, models[format])
    if format in QUANTISED and verb == "eval":  # it multiplies blocks as they are, with its own rounding
        assert given == pytest.approx(expected[folder, verb], rel=0.01)
    else:
        assert given == expected[folder, verb]


def test_llama2_c_has_to_be_told_how_it_chats(models: dict[str, str], run: Callable[..., str]) -> None:
    with pytest.raises(AssertionError, match=r"(?s)came without a chat format.*--chat-format"):
        chat(run, models["llama2.c"])
    assert chat(run, models["llama2.c"], "--chat-format", "llama2") == chat(run, models["huggingface"])
    with pytest.raises(AssertionError, match=r"(?s)chat format.*'llama4'.*llama3"):
        chat(run, models["llama2.c"], "--chat-format", "llama4")


@pytest.mark.parametrize("format", FORMATS[1:])
def test_verify_takes_it(models: dict[str, str], run: Callable[..., str], format: str) -> None:
    run("verify", models[folder_of(format)], models[format], "--device", "cpu")


@pytest.mark.parametrize("to", ["huggingface", "meta", "gguf"])
@pytest.mark.parametrize("format", FORMATS[1:])
def test_convert_writes_the_same_weights(
    models: dict[str, str], tmp_path: Path, run: Callable[..., str], format: str, to: str
) -> None:
    assert run("convert", models[format], "again", "--to", to).strip() == "again"
    paths = (Path(models[folder_of(format)]), tmp_path / "again")
    one, other = (load_model(open_checkpoint(at)).state_dict() for at in paths)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
