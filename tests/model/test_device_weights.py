"""Projections in torchao's formats: what they compute, what stays as it is, and what is refused."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from camelid.base.errors import ConfigError, EngineError, NotFoundError, ResourceError
from camelid.checkpoint import open_checkpoint, save_huggingface
from camelid.codecs import DEVICE_FORMATS, FORMATS
from camelid.engine.decode_step import new_decode_step
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model.device_weights import pack_projections
from camelid.model.linear import Linear, Matrix
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.llama4 import Llama4, Llama4Config, Router
from camelid.model.lora import LoraAdapter, LoraConfig

SHAPE = {"vocab_size": 61, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PROMPTS = [[5, 17, 9, 3], [44], list(range(7, 45))]
ON_A_CPU = ["int8", "int8_dynamic"]


needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs torchao; runs where camelid[torchao] is installed"
)


def new_llama(tied: bool = False) -> Llama:
    shape = {**SHAPE, "intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = Llama.from_config(LlamaConfig(**shape, initializer_range=0.1, tie_word_embeddings=tied))
    model.initialize(seed=0)
    return model


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_torchao
@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("name", ON_A_CPU)
def test_products_are_those_of_the_dequantised_matrix(name: str, num_tokens: int) -> None:
    linear = Linear(128, 96, bias=True)
    weight, x = random(96, 128), random(num_tokens, 128)
    linear.load_dense(weight)
    assert linear.bias is not None
    torch.nn.init.normal_(linear.bias)
    linear.load_packed(DEVICE_FORMATS.load(name).pack(weight))

    dense = linear.dense()
    product = linear(x).detach()

    # Half of one of 127 steps up to the row's greatest weight, and for activations likewise.
    assert ((dense - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all()
    expected = x @ dense.T + linear.bias
    slack = 1e-4 if name == "int8" else x.abs().amax(1, keepdim=True) / 127 * 0.51 * dense.abs().sum(1)
    assert ((product - expected).abs() <= slack).all()


@needs_torchao
def test_an_8_bit_model_is_the_model_of_its_dequantised_weights() -> None:
    packed, dense = new_llama(), new_llama()
    pack_projections(packed, "int8")
    for ours, theirs in zip(packed.modules(), dense.modules(), strict=True):
        if isinstance(ours, Matrix) and isinstance(theirs, Matrix):
            theirs.load_dense(ours.dense())

    for options in ({}, {"decode_graphs": True}, {"max_batch_tokens": 5}):
        replies = Engine(packed, **options).generate(PROMPTS, SamplingParams(max_tokens=30))
        expected = Engine(dense).generate(PROMPTS, SamplingParams(max_tokens=30))
        assert [r.token_ids for r in replies] == [r.token_ids for r in expected]


@needs_torchao
@pytest.mark.parametrize("tied", [False, True])
def test_what_scores_the_vocabulary_stays_exact(tied: bool) -> None:
    model = new_llama(tied)
    pack_projections(model, "int8")
    packed = {path for path, module in model.named_modules() if isinstance(module, Matrix) and module.packed}
    assert {path.rpartition(".")[2] for path in packed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert model.output_matrix.weight is not None


@needs_torchao
def test_what_chooses_experts_stays_exact() -> None:
    model = Llama4.from_config(Llama4Config(**SHAPE, intermediate_size=64, intermediate_size_mlp=64, head_dim=32))
    model.initialize(seed=0)
    pack_projections(model, "int8")
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert routers
    assert all(router.weight is not None for router in routers)
    assert len(Engine(model).generate([[1, 2]], SamplingParams(max_tokens=4))[0].token_ids) == 4


@needs_torchao
def test_a_packed_model_can_be_written_merged_and_known_by_its_weights(tmp_path: Path) -> None:
    model = new_llama()
    pack_projections(model, "int8")
    name = "model.layers.0.mlp.up_proj.weight"

    save_huggingface(model, tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    written = checkpoint.read(name)
    checkpoint.close()
    engine = Engine(model, block_size=4)
    engine.generate([PROMPTS[2]], SamplingParams(max_tokens=1))

    assert isinstance(written, torch.Tensor)
    assert torch.equal(written, model.model.layers[0].mlp.up_proj.dense())
    assert engine.save_cache(tmp_path / "cache") > 0
    assert Engine(model, block_size=4).restore_cache(tmp_path / "cache") > 0
    engine.add_adapter("a", LoraAdapter.new(model, LoraConfig(rank=2)))
    with pytest.raises(EngineError, match="no parameter"):
        engine.update_weights([(name, written)])


@needs_torchao
def test_what_a_format_does_not_take_is_refused() -> None:
    model = new_llama()
    with pytest.raises(NotFoundError, match="no weight format for a device named 'int7'"):
        pack_projections(model, "int7")
    with pytest.raises(ConfigError, match="bfloat16 on a CUDA device") as caught:
        pack_projections(model, "int4")
    assert caught.value.where == "model.layers.0.self_attn.q_proj"
    pack_projections(model, "int8")
    with pytest.raises(ConfigError, match="packed as int8 already"):
        pack_projections(model, "int8")
    model = new_llama()
    projection = model.model.layers[0].self_attn.q_proj
    assert isinstance(projection, Linear)
    projection.load_packed(FORMATS.load("q8_0").pack(projection.dense()))
    with pytest.raises(ConfigError, match="packed as q8_0 already"):
        pack_projections(model, "int8")


@needs_torchao
def test_activations_in_8_bits_are_recorded_only_where_they_are_compiled() -> None:
    model = new_llama()
    pack_projections(model, "int8_dynamic")
    cache = Engine(model, decode_graphs=True)._runner.cache
    cache.device = torch.device("cuda")  # where steps would be recorded
    with pytest.raises(EngineError, match="weights in int8_dynamic decide") as caught:
        new_decode_step(model, cache, max_sequences=1, max_context=9, recorded=True, compiled=False)
    assert caught.value.hint == "compile=True"


def test_without_torchao_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ResourceError, match="need torchao") as caught:
        pack_projections(new_llama(), "int8")
    assert "camelid[torchao]" in str(caught.value.hint)
