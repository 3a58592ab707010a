"""A `config.json` is honoured, warned about, or refused; never half understood."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import ConfigError
from camelid.model.llama_config import HONOURED, LlamaConfig
from camelid.model.presets import PRESETS
from camelid.model.rope import ROPE_TYPES, Llama3Rope, RopeParameters

MINIMAL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

LLAMA_3_2_1B_ON_THE_HUB: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 128256,
}


@pytest.fixture(autouse=True)
def _warnings_are_errors(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("error")


def test_a_released_config_is_the_preset() -> None:
    config = LlamaConfig.from_hf(LLAMA_3_2_1B_ON_THE_HUB)

    preset = PRESETS["llama-3.2-1b"].config
    assert config == replace(preset, eos_token_id=(128001, 128008, 128009))


def test_old_and_new_spellings_mean_the_same() -> None:
    new = {**LLAMA_3_2_1B_ON_THE_HUB, "dtype": "bfloat16"}
    del new["torch_dtype"]
    new["rope_parameters"] = {**new.pop("rope_scaling"), "rope_theta": new.pop("rope_theta")}
    oldest = {**LLAMA_3_2_1B_ON_THE_HUB}
    oldest["rope_scaling"] = {**oldest["rope_scaling"]}
    oldest["rope_scaling"]["type"] = oldest["rope_scaling"].pop("rope_type")

    assert LlamaConfig.from_hf(new) == LlamaConfig.from_hf(oldest) == LlamaConfig.from_hf(LLAMA_3_2_1B_ON_THE_HUB)


def test_what_is_left_out_follows_from_the_rest() -> None:
    config = LlamaConfig.from_hf(MINIMAL)

    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert config.rope_parameters == RopeParameters(rope_theta=10_000.0)
    assert config.dtype == "float32"


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.2-1b", "smollm2-135m"])
def test_transformers_reads_what_is_written(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name].config

    theirs = transformers.LlamaConfig.from_dict(config.to_hf())

    assert LlamaConfig.from_hf(theirs.to_dict()) == config
    assert str(theirs.dtype).endswith(config.dtype)


def test_an_unknown_key_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"unknown key 'hidden_sise'; did you mean 'hidden_size'"):
        LlamaConfig.from_hf({**MINIMAL, "hidden_sise": 3})


def test_attention_dropout_is_said_not_to_be_applied() -> None:
    with pytest.warns(UserWarning, match="attention_dropout"):
        LlamaConfig.from_hf({**MINIMAL, "attention_dropout": 0.1})


@pytest.mark.parametrize("name", [name for name in MINIMAL if name != "model_type"])
def test_a_size_without_default_is_required(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no {name}"):
        LlamaConfig.from_hf({key: value for key, value in MINIMAL.items() if key != name})


COUNTS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]


@pytest.mark.parametrize("value", [0, -1, True, 4.0, "4", [4], 2**40])
@pytest.mark.parametrize("name", COUNTS)
def test_a_size_is_a_positive_whole_number_that_a_model_can_have(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        LlamaConfig.from_hf({**MINIMAL, name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"num_key_value_heads": 8}, "4 heads cannot share 8"),
        ({"head_dim": 15}, "even head_dim"),
        ({"hidden_size": 60, "num_attention_heads": 4}, "even head_dim"),
        ({"hidden_size": 66}, "not a multiple"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"initializer_range": -0.02}, "initializer_range"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"mlp_bias": "yes"}, "mlp_bias"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"bos_token_id": [1]}, "bos_token_id"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id"),
        ({"pad_token_id": "0"}, "pad_token_id"),
        ({"torch_dtype": "float8"}, "dtype"),
        ({"dtype": 16}, "dtype"),
        ({"model_type": "mistral"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_hf({**MINIMAL, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2},
        {"pad_token_id": -1},
        {"sliding_window": None},
        {"rope_interleaved": False, "is_llama_config": True},
        {"hidden_act": "swish"},
        {"partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True}},
        {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None, "eos_token_id": None},
    ],
)
def test_what_leaves_the_mathematics_alone_is_accepted(changes: dict[str, Any]) -> None:
    assert LlamaConfig.from_hf({**MINIMAL, **changes}).num_parameters == LlamaConfig.from_hf(MINIMAL).num_parameters


def test_an_explicit_head_dim_need_not_divide_the_hidden_size() -> None:
    assert LlamaConfig.from_hf({**MINIMAL, "hidden_size": 66, "head_dim": 16}).head_dim == 16


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "unknown rope type 'longrope'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "unknown rope type 'dynamic'"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "unknown rope type"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "disagree"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "low_freq": 1.0}}, "unknown key 'low_freq'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "needs 'high_freq_factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "needs 'original_max_position_embeddings'"),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0.5}},
            "beta_fast",
        ),
        ({"rope_scaling": "linear"}, "must be a table"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters disagree",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_rope_settings_that_cannot_be_honoured_are_refused(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_hf({**MINIMAL, **rope})


def test_llama3_rope_wants_its_blend_the_right_way_round() -> None:
    with pytest.raises(ConfigError, match="high_freq_factor"):
        Llama3Rope(factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0, original_max_position_embeddings=8192)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
ROPE_KEYS = sorted({"type", "rope_type", *(f.name for kind in ROPE_TYPES.values() for f in fields(kind))})
KEYS = sorted({*LLAMA_3_2_1B_ON_THE_HUB, *HONOURED, "rope_parameters", "dtype", "quantization_config"})


@pytest.mark.filterwarnings("ignore")
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
    st.none() | st.dictionaries(st.sampled_from(ROPE_KEYS), JSON | st.sampled_from(sorted(ROPE_TYPES)), max_size=5),
)
def test_whatever_a_file_holds_is_a_config_or_a_config_error(
    changes: dict[str, Any], rope: dict[str, Any] | None
) -> None:
    warnings.simplefilter("ignore")
    settings = {**LLAMA_3_2_1B_ON_THE_HUB, **changes}
    if rope is not None:
        settings["rope_scaling"] = rope
    try:
        config = LlamaConfig.from_hf(settings)
    except ConfigError:
        return
    assert config.num_parameters > 0
    assert LlamaConfig.from_hf(config.to_hf()) == config
    assert config.rope_parameters.frequencies(config.head_dim).isfinite().all()


def test_a_theta_in_the_table_wins_over_one_beside_it() -> None:
    settings = {**MINIMAL, "rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}

    assert LlamaConfig.from_hf(settings).rope_parameters == RopeParameters(rope_theta=7.0)


def test_the_original_context_defaults_to_the_context() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

    rope = LlamaConfig.from_hf({**MINIMAL, "max_position_embeddings": 4096, "rope_scaling": scaling}).rope_parameters

    assert isinstance(rope, Llama3Rope)
    assert rope.original_max_position_embeddings == 4096
