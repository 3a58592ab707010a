"""Whatever a `config.json` holds, an architecture reads it as a config or refuses it as one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import ConfigError
from camelid.model.config import ModelConfig
from camelid.model.llama4_config import Llama4Config
from camelid.model.opt_config import OPTConfig

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
MINIMAL: dict[type[ModelConfig], dict[str, Any]] = {
    OPTConfig: {**SIZES, "ffn_dim": 64},
    Llama4Config: {**SIZES, "intermediate_size": 24, "intermediate_size_mlp": 40},
}
KEYS = sorted({*OPTConfig(**MINIMAL[OPTConfig]).to_hf(), *Llama4Config(**MINIMAL[Llama4Config]).to_hf(), "layer_types"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("config_class", MINIMAL)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_whatever_a_file_holds_is_a_config_or_a_config_error(
    config_class: type[ModelConfig], changes: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = config_class.from_hf({**MINIMAL[config_class], **changes})
        except ConfigError:
            return
        assert config_class.from_hf(config.to_hf()) == config
        assert config.num_parameters > 0
