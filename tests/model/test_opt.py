"""What of OPT is its own: its config, the exceptions of 350M, and where its positions begin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from camelid.base.errors import ConfigError
from camelid.model.attention import PackedContext
from camelid.model.opt import OPT, OPTConfig
from camelid.model.presets import PRESETS

MINIMAL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}

OPT_350M_ON_THE_HUB = {
    "_name_or_path": "opt-350m",
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": False,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.20.0.dev0",
    "use_cache": True,
    "vocab_size": 50272,
    "word_embed_proj_dim": 512,
}
"""Keys as the converter of the release writes them."""


def test_a_config_of_the_hub_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    config = OPTConfig.from_hf(OPT_350M_ON_THE_HUB)

    assert config == PRESETS["opt-350m"].config.changed(init_std=0.02)
    assert (config.head_dim, config.num_key_value_heads, config.has_final_layer_norm) == (64, 16, False)
    assert not recwarn.list


def test_a_config_of_galactica_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    settings = {**MINIMAL, "learned_embeddings": True, "scale_embeddings": False, "activation_function": "gelu"}

    config = OPTConfig.from_hf({**settings, "enable_bias": False, "layer_norm_elementwise_affine": False})

    assert not config.enable_bias
    assert not config.layer_norm_elementwise_affine
    assert not recwarn.list


def test_an_unknown_key_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"'ffn_dims'; did you mean 'ffn_dim'"):
        OPTConfig.from_hf({**MINIMAL, "ffn_dims": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu_new"}, "activation_function"),
        ({"activation_function": ["relu"]}, "activation_function"),
        ({"learned_embeddings": False}, "learned_embeddings"),
        ({"scale_embeddings": True}, "scale_embeddings"),
        ({"bias": False}, "bias"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"ffn_dim": 0}, "ffn_dim"),
        ({"ffn_dim": None}, "no ffn_dim"),
        ({"word_embed_proj_dim": 2**30}, "word_embed_proj_dim"),
        ({"enable_bias": "yes"}, "enable_bias"),
        ({"_remove_final_layer_norm": 1}, "remove_final_layer_norm"),
        ({"dtype": "int8"}, "dtype"),
        ({"bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OPTConfig.from_hf({**MINIMAL, **changes})


@pytest.mark.parametrize("name", ["opt-125m", "opt-350m", "galactica-1.3b"])
def test_transformers_reads_what_is_written(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name].config

    theirs = transformers.OPTConfig.from_dict(config.to_hf())

    assert OPTConfig.from_hf(theirs.to_dict()) == config


def test_hidden_states_of_350m_have_the_size_of_its_token_vectors() -> None:
    model = OPT.from_config(OPTConfig(**MINIMAL, word_embed_proj_dim=16, do_layer_norm_before=False))
    model.initialize(seed=0)
    context = PackedContext([5])

    hidden = model(torch.arange(5), context.positions(), context)

    assert hidden.shape == (5, 16)
    assert model.logits(hidden).shape == (5, 96)


def test_the_last_position_has_a_row_and_the_first_two_rows_are_of_none() -> None:
    model = OPT.from_config(OPTConfig(**MINIMAL))
    model.initialize(seed=0)
    context = PackedContext([40])

    hidden = model(torch.zeros(40, dtype=torch.int64), context.positions(), context)
    model.logits(hidden).sum().backward()

    used = model.model.decoder.embed_positions.weight.grad.abs().sum(-1) > 0
    assert used.tolist() == [False, False, *[True] * 40]


def test_the_ends_of_branches_begin_narrower() -> None:
    model = OPT.from_config(OPTConfig(**{**MINIMAL, "hidden_size": 128, "num_hidden_layers": 8}, init_std=0.1))

    model.initialize(seed=0)

    first = model.model.decoder.layers[0]
    assert first.self_attn.q_proj.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert first.self_attn.out_proj.weight.std().item() == pytest.approx(0.1 / 4, rel=0.1)
    assert first.fc2.weight.std().item() == pytest.approx(0.1 / 4, rel=0.1)


def test_bf16_stays_bf16() -> None:
    model = OPT.from_config(OPTConfig(**MINIMAL)).bfloat16()
    model.initialize(seed=0)
    context = PackedContext([5])

    assert model(torch.arange(5), context.positions(), context).dtype == torch.bfloat16
