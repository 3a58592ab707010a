"""What of Llama 4 is its own: its config, which layers are which, and how its experts are chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from camelid.base.errors import ConfigError
from camelid.model.attention import PackedContext
from camelid.model.llama4 import Llama4, Llama4Config, MixtureOfExperts
from camelid.model.presets import PRESETS

MINIMAL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}

SCOUT_ON_THE_HUB = {
    "_attn_implementation_autoset": True,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "cache_implementation": "hybrid",
    "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 262144,
    "model_type": "llama4_text",
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}
"""Keys as the first text configs on the hub spell them."""


def test_a_config_of_the_hub_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert Llama4Config.from_hf(SCOUT_ON_THE_HUB) == PRESETS["llama-4-scout"].config
    assert not recwarn.list


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick"])
def test_transformers_reads_what_is_written(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name].config

    theirs = transformers.Llama4TextConfig.from_dict(config.to_hf())

    assert Llama4Config.from_hf(theirs.to_dict()) == config


def test_layers_follow_from_step_and_interval_or_are_named() -> None:
    derived = Llama4Config(**MINIMAL, interleave_moe_layer_step=2)
    named = Llama4Config(**MINIMAL, moe_layers=(5, 1), no_rope_layers=(0, 1) * 4)

    assert derived.layers_with_experts == (1, 3, 5, 7)
    assert derived.layers_with_rope == (1, 1, 1, 0) * 2
    assert derived.changed(num_hidden_layers=3).layers_with_rope == (1, 1, 1)
    assert named.layers_with_experts == (1, 5)
    assert named.layer_types == ["full_attention", "chunked_attention"] * 4
    assert Llama4Config.from_hf(named.to_hf()) == named.changed(moe_layers=(1, 5))


def test_lists_that_say_what_step_and_interval_say_are_not_kept() -> None:
    config = Llama4Config.from_hf({**MINIMAL, "moe_layers": list(range(8)), "no_rope_layers": [1, 1, 1, 0] * 2})

    assert config == Llama4Config(**MINIMAL)
    assert config.changed(num_hidden_layers=4).num_parameters < config.num_parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_layers": [8]}, "moe_layers"),
        ({"moe_layers": [True]}, "moe_layers"),
        ({"moe_layers": "all"}, "moe_layers"),
        ({"no_rope_layers": [1, 1]}, "no_rope_layers"),
        ({"no_rope_layers": [2] * 8}, "no_rope_layers"),
        ({"layer_types": ["full_attention"] * 8}, "layer_types"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step"),
        ({"attention_chunk_size": -1}, "attention_chunk_size"),
        ({"floor_scale": 0.5}, "floor_scale"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning"),
        ({"head_dim": 7}, "even head_dim"),
        ({"num_key_value_heads": 3}, "share"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama4"}, "model_type"),
        ({"quantization_config": {"bits": 8}}, "quantised"),
        ({"intermediate_size_mlp": None}, "no intermediate_size_mlp"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Llama4Config.from_hf({**MINIMAL, **changes})


def test_an_unknown_key_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="'expert_dropout'"):
        Llama4Config.from_hf({**MINIMAL, "expert_dropout": 0.5})


def new_mixture(num_experts: int, num_chosen: int) -> MixtureOfExperts:
    config = Llama4Config(**MINIMAL, num_local_experts=num_experts, num_experts_per_tok=num_chosen)
    mixture = MixtureOfExperts(config).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixture


@pytest.mark.parametrize(("num_experts", "num_chosen"), [(1, 1), (5, 1), (5, 3), (3, 3)])
@torch.no_grad()
def test_each_token_goes_through_its_best_experts_scaled_before_them(num_experts: int, num_chosen: int) -> None:
    mixture = new_mixture(num_experts, num_chosen)
    x = torch.randn(11, 32, dtype=torch.float64)

    out = mixture(x)

    for token, row in zip(x, out, strict=True):
        scores = mixture.router.weight @ token
        expected = mixture.shared_expert(token[None])[0]
        for expert in scores.argsort(descending=True)[:num_chosen].tolist():
            scaled = token * scores[expert].float().sigmoid().double()
            gate, up = (scaled @ mixture.experts.gate_up_proj[expert]).split(24)
            expected = expected + (gate * gate.sigmoid() * up) @ mixture.experts.down_proj[expert]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)  # the sigmoid is in fp32


@torch.no_grad()
def test_no_tokens_are_no_trouble() -> None:
    assert new_mixture(4, 2)(torch.empty(0, 32, dtype=torch.float64)).shape == (0, 32)


def test_experts_that_nobody_chose_learn_nothing() -> None:
    mixture = new_mixture(6, 1)
    x = torch.randn(2, 32, dtype=torch.float64)

    mixture(x).sum().backward()

    chosen = set(mixture.router(x).argmax(-1).tolist())
    learned = mixture.experts.down_proj.grad.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert set(learned) == chosen


@torch.inference_mode()
def test_bf16_stays_bf16() -> None:
    model = Llama4.from_config(Llama4Config(**MINIMAL)).bfloat16()
    model.initialize(seed=0)
    context = PackedContext([9])

    assert model(torch.arange(9), context.positions(), context).dtype == torch.bfloat16
