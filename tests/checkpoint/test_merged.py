"""Converting with an adapter: weights are sums, in every format and from every format; all else is as it was."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import logits, tiny_model

from camelid.base.errors import ConfigError, EngineError, FormatError, NotFoundError
from camelid.checkpoint import convert, load_model, open_checkpoint, save_huggingface
from camelid.checkpoint.lineage import read_lineage
from camelid.model.base import LanguageModel
from camelid.model.llama import Llama
from camelid.model.lora import LoraAdapter, LoraConfig, Merged


def new_adapter(model: Llama, **changes: object) -> LoraAdapter:
    adapter = LoraAdapter.new(model, LoraConfig(rank=4, **changes))  # type: ignore[arg-type]
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=0.2, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    new_adapter(tiny_model()).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def source_in(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    save_huggingface(tiny_model(dtype=dtype), folder / "source")
    return folder / "source"


def loaded(path: Path) -> LanguageModel:
    with closing(open_checkpoint(path)) as checkpoint:
        return load_model(checkpoint, device="cpu", dtype=torch.float32, packed=False)


def merged_logits(path: Path, adapter: Path) -> torch.Tensor:
    model = loaded(path)
    Merged(model, LoraAdapter.open(adapter))
    return logits(model)


@pytest.mark.parametrize("to", ["huggingface", "meta", "gguf"])
def test_the_target_computes_what_the_adapted_model_does(tmp_path: Path, adapter: Path, to: str) -> None:
    source = source_in(tmp_path)
    expected = merged_logits(source, adapter)
    target = tmp_path / "target.gguf" if to == "gguf" else tmp_path / "target"
    is_same = convert(source, target, to=to, tokenizer=False, adapter=adapter)
    assert not is_same
    torch.testing.assert_close(logits(loaded(target)), expected)
    assert not torch.allclose(logits(loaded(source)), expected, atol=1e-2)


@pytest.mark.parametrize("through", ["meta", "gguf"])
def test_the_source_may_be_of_any_format(tmp_path: Path, adapter: Path, through: str) -> None:
    expected = merged_logits(source_in(tmp_path), adapter)
    between = tmp_path / "between.gguf" if through == "gguf" else tmp_path / "between"
    convert(tmp_path / "source", between, to=through, tokenizer=False)
    convert(between, tmp_path / "target", to="huggingface", tokenizer=False, adapter=adapter)
    torch.testing.assert_close(logits(loaded(tmp_path / "target")), expected)


def test_packed_weights_that_change_become_dense_and_can_be_packed_again(tmp_path: Path, adapter: Path) -> None:
    packed = tmp_path / "packed.gguf"
    convert(source_in(tmp_path), packed, to="gguf", quantize="q8_0", tokenizer=False)
    new_adapter(tiny_model(), targets=("q_proj",)).save(tmp_path / "queries")
    expected = merged_logits(packed, tmp_path / "queries")

    convert(packed, tmp_path / "dense.gguf", to="gguf", tokenizer=False, adapter=tmp_path / "queries")
    with closing(open_checkpoint(tmp_path / "dense.gguf")) as checkpoint:
        formats = {name: info.format for name, info in checkpoint.tensors.items()}
    assert formats["model.layers.0.self_attn.q_proj.weight"] == "float32"
    assert formats["model.layers.0.self_attn.k_proj.weight"] == "q8_0"
    torch.testing.assert_close(logits(loaded(tmp_path / "dense.gguf")), expected)

    again = tmp_path / "again.gguf"
    convert(packed, again, to="gguf", quantize="q8_0", tokenizer=False, adapter=tmp_path / "queries")
    torch.testing.assert_close(logits(loaded(again)), expected, atol=0.05, rtol=0.05)


def test_a_sum_is_rounded_once(tmp_path: Path, adapter: Path) -> None:
    source = source_in(tmp_path, torch.bfloat16)
    convert(source, tmp_path / "target", to="huggingface", tokenizer=False, adapter=adapter)
    name = "model.layers.1.mlp.up_proj"
    change = LoraAdapter.open(adapter).changes[name].change()
    with closing(open_checkpoint(source)) as one, closing(open_checkpoint(tmp_path / "target")) as other:
        before, after = one.read(f"{name}.weight"), other.read(f"{name}.weight")
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert torch.equal(after, (before.float() + change).bfloat16())


def test_the_lineage_names_the_adapter(tmp_path: Path, adapter: Path) -> None:
    convert(source_in(tmp_path), tmp_path / "target", to="huggingface", tokenizer=False, adapter=adapter)
    facts = read_lineage(tmp_path / "target").facts
    assert facts["adapter"] == {"name": "adapter", "digest": LoraAdapter.open(adapter).digest()}


def test_what_does_not_fit_or_is_no_adapter_leaves_nothing(tmp_path: Path, adapter: Path) -> None:
    source = source_in(tmp_path)
    other = tiny_model()
    other.model.layers[0].mlp.up_proj = type(other.model.layers[0].mlp.up_proj)(32, 48, bias=False)
    new_adapter(other, targets=("up_proj",)).save(tmp_path / "wide")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    for folder, error in (
        (tmp_path / "wide", EngineError),
        (tmp_path / "none", NotFoundError),
        (broken, FormatError),
        (source, NotFoundError),
    ):
        with pytest.raises(error):
            convert(source, tmp_path / "target", to="huggingface", tokenizer=False, adapter=folder)
        assert not (tmp_path / "target").exists()
    with pytest.raises(ConfigError, match="something of this name already"):
        convert(source, source, to="huggingface", tokenizer=False, adapter=adapter)
