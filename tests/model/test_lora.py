"""Low-rank adapters against PEFT, in both directions and around every kind of weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from camelid.base.errors import CamelidError, ConfigError, EngineError, FormatError, NotFoundError
from camelid.codecs import FORMATS
from camelid.model.attention import PackedContext
from camelid.model.linear import Linear
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.lora import Adapters, LoraAdapter, LoraConfig, Merged

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def new_llama() -> Llama:
    model = Llama.from_config(LlamaConfig(**SHAPE))
    model.initialize(seed=0)
    return model.eval()


def new_adapter(model: Llama, seed: int = 0, **settings: Any) -> LoraAdapter:
    adapter = LoraAdapter.new(model, LoraConfig(**{"rank": 4, **settings}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=0.5, generator=generator)
    return adapter


@torch.no_grad()
def scores(model: Llama, lengths: list[int]) -> torch.Tensor:
    context = PackedContext(lengths)
    return model.logits(model(IDS, context.positions(), context))


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 4,
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 31},
        },
    ],
    ids=["plain", "rank-stabilised", "patterns"],
)
def test_an_adapter_of_peft_gives_pefts_scores(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    ours = new_llama()
    ours.load_state_dict(theirs.state_dict())
    tuned = peft.get_peft_model(theirs, peft.LoraConfig(**settings))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned(IDS[None]).logits[0]
    plain = scores(ours, [8])

    adapters = Adapters(ours)
    adapters.add("a", LoraAdapter.open(tmp_path / "adapter"))
    with adapters.applied([("a", 8)]):
        torch.testing.assert_close(scores(ours, [8]), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores(ours, [8]), plain)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_peft_opens_what_is_saved_here(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    ours = new_llama()
    theirs.load_state_dict(ours.state_dict())
    adapter = new_adapter(ours)
    adapter.save(tmp_path / "adapter")
    tuned = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    merged = Merged(ours, adapter)
    with torch.no_grad():
        torch.testing.assert_close(scores(ours, [8]), tuned(IDS[None]).logits[0], rtol=1e-4, atol=1e-5)
    merged.undo()


def test_each_token_gets_its_own_adapter() -> None:
    model = new_llama()
    adapters = Adapters(model)
    for name, seed in (("a", 1), ("b", 2)):
        adapters.add(name, new_adapter(model, seed))
    alone = {}
    for name in ("a", "b", None):
        with adapters.applied([(name, 8)]):
            alone[name] = scores(model, [2, 2, 3, 1])
    with adapters.applied([("a", 2), (None, 2), ("a", 3), ("b", 1)]):
        mixed = scores(model, [2, 2, 3, 1])
    expected = torch.cat([alone["a"][:2], alone[None][2:4], alone["a"][4:7], alone["b"][7:]])
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("weight_format", [None, "q8_0", "q4_1"])
def test_merging_changes_the_weights_and_undoing_restores_every_bit(weight_format: str | None) -> None:
    model = new_llama()
    if weight_format:
        for module in model.modules():
            if isinstance(module, Linear) and module.weight is not None:
                module.load_packed(FORMATS.load(weight_format).pack(module.weight))
    adapter = new_adapter(model)
    plain = scores(model, [8])
    adapters = Adapters(model)
    adapters.add("a", adapter)
    with adapters.applied([("a", 8)]):
        applied = scores(model, [8])
    merged = Merged(model, adapter)
    torch.testing.assert_close(scores(model, [8]), applied, rtol=0.02, atol=0.02)
    merged.undo()
    assert torch.equal(scores(model, [8]), plain)
    assert not torch.allclose(applied, plain, atol=0.1)


def test_a_new_adapter_changes_nothing_and_a_removed_one_leaves_nothing() -> None:
    model = new_llama()
    plain = scores(model, [8])
    adapters = Adapters(model)
    adapters.add("a", LoraAdapter.new(model, LoraConfig()))
    first = adapters.identity("a")
    with adapters.applied([("a", 8)]):
        assert torch.equal(scores(model, [8]), plain)
    adapters.remove("a")
    assert not any(module._forward_hooks for module in model.modules())
    adapters.add("a", new_adapter(model))
    assert adapters.identity("a") != first


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = new_llama()
    adapters = Adapters(model)
    adapters.add("a", new_adapter(model))
    with pytest.raises(EngineError, match="an adapter named 'a' already"):
        adapters.add("a", new_adapter(model))
    with pytest.raises(NotFoundError, match="no adapter named 'b'"):
        adapters.identity("b")
    other = Llama.from_config(LlamaConfig(**{**SHAPE, "hidden_size": 16}))
    other.initialize(seed=0)
    with pytest.raises(EngineError, match="changes a matrix"):
        Merged(other, new_adapter(model))
    with pytest.raises(EngineError, match="no projection 'lm_head'"):
        adapters.add("c", new_adapter(model, targets=("lm_head",)))
    with pytest.raises(ConfigError, match="none of the projections nothing"):
        LoraAdapter.new(model, LoraConfig(targets=("nothing",)))
    with pytest.raises(NotFoundError):
        LoraAdapter.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "no LoRA adapter but 'IA3'"),
        ({"something_new": 3}, "something_new"),
        ({"r": 0}, "do not make a scale"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    new_adapter(new_llama()).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        LoraAdapter.open(tmp_path / "adapter")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    new_adapter(new_llama()).save(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    data = weights.read_bytes()
    for broken in (data[:-10], b"", data[:100]):
        weights.write_bytes(broken)
        with pytest.raises(FormatError):
            LoraAdapter.open(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(CamelidError):
        LoraAdapter.open(tmp_path / "adapter")
