"""The verbs and `camelid.load` take a model in any format, under any name, and get the same from it."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_llama2c import llama2_c_file

import camelid
from camelid.base.errors import ConfigError
from camelid.checkpoint import convert, load_model, open_checkpoint, save_huggingface
from camelid.cli.main import main
from camelid.model.linear import Matrix
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer import load_tokenizer

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
FORMATS = ("huggingface", "sharded", "meta", "meta shards", "gguf", "gguf folder", "llama2.c")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One model in every format, under names that say nothing."""
    at = tmp_path_factory.mktemp("formats")
    model = Llama.from_config(CONFIG)
    model.initialize(seed=4)
    tokenizer = load_tokenizer(LLAMA_2)
    save_huggingface(model, at / "a.gguf", tokenizer=tokenizer)
    save_huggingface(model, at / "b.pth", tokenizer=tokenizer, max_shard_bytes=100_000)
    convert(at / "a.gguf", at / "c.safetensors", to="meta")
    convert(at / "a.gguf", at / "d", to="meta", model_parallel=2)
    convert(at / "a.gguf", at / "e.bin", to="gguf")
    (at / "f").mkdir()
    shutil.copy(at / "e.bin", at / "f" / "weights")
    (at / "g").mkdir()
    (at / "g" / "model.gguf").write_bytes(llama2_c_file(model))
    shutil.copy(LLAMA_2, at / "g" / "tokenizer.model")
    names = ("a.gguf", "b.pth", "c.safetensors", "d", "e.bin", "f", "g/model.gguf")
    return {format: str(at / name) for format, name in zip(FORMATS, names, strict=False)}


@pytest.mark.parametrize("format", FORMATS)
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


@pytest.mark.parametrize("format", FORMATS[1:])
def test_the_verbs_take_it(
    models: dict[str, str],
    tmp_path: Path,
    format: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = models[format]

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert not caught.value.code, said.err
        return said.out

    assert run("tokenizer", "encode", path, "The river") == run("tokenizer", "encode", str(LLAMA_2), "The river")
    assert run("convert", path, str(tmp_path / "again"), "--to", "huggingface").strip() == str(tmp_path / "again")
    one, other = (
        load_model(open_checkpoint(Path(at))).state_dict() for at in (models["huggingface"], tmp_path / "again")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
