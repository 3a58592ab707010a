"""The released sizes, to the last parameter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from camelid.model.layers import feed_forward_width
from camelid.model.presets import PRESETS
from camelid.model.sizes import num_parameters

RELEASED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-7b-python": 6_738_415_616,
    "codellama-13b": 13_016_028_160,
    "codellama-13b-python": 13_015_864_320,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "stories15m": 15_191_712,
    "stories110m": 109_529_856,
}

KV_KIB_PER_TOKEN = {
    "llama-7b": 512,
    "llama-13b": 800,
    "llama-33b": 1560,
    "llama-65b": 2560,
    "llama-2-70b": 320,
    "codellama-34b": 192,
    "llama-3-8b": 128,
    "llama-3.1-405b": 504,
    "llama-3.2-1b": 32,
    "llama-3.2-3b": 112,
}
"""At 16 bits."""

META_WIDTHS = {
    "llama-7b": (256, None),
    "llama-13b": (256, None),
    "llama-33b": (256, None),
    "llama-65b": (256, None),
    "llama-2-70b": (4096, 1.3),
    "codellama-34b": (256, 1.0),
    "llama-3-8b": (1024, 1.3),
    "llama-3-70b": (4096, 1.3),
    "llama-3.1-405b": (4096, 1.2),
    "llama-3.2-1b": (256, 1.5),
    "llama-3.2-3b": (256, 1.0),
}
"""`multiple_of` and `ffn_dim_multiplier` of the released `params.json` files."""


def test_every_preset_has_a_known_count() -> None:
    assert PRESETS.keys() == RELEASED.keys()
    assert all(name == preset.name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_the_module_has_exactly_the_released_number_of_parameters(name: str) -> None:
    config = PRESETS[name].config

    assert num_parameters(config) == RELEASED[name]
    assert config.num_parameters == RELEASED[name]


def test_biases_are_counted() -> None:
    config = replace(PRESETS["smollm2-135m"].config, attention_bias=True, mlp_bias=True, num_hidden_layers=2)

    assert config.num_parameters == num_parameters(config)


@pytest.mark.parametrize("name", KV_KIB_PER_TOKEN)
def test_cache_per_token(name: str) -> None:
    assert PRESETS[name].config.kv_bytes_per_token("bfloat16") == KV_KIB_PER_TOKEN[name] * 1024


def test_memory_of_the_weights() -> None:
    config = PRESETS["llama-3.2-1b"].config

    assert config.memory_bytes("float32") == 2 * config.memory_bytes("bfloat16") == 4_943_257_600


@pytest.mark.parametrize("name", META_WIDTHS)
def test_feed_forward_widths_follow_metas_rule(name: str) -> None:
    config = PRESETS[name].config

    assert feed_forward_width(config.hidden_size, *META_WIDTHS[name]) == config.intermediate_size


def test_listing_presets_needs_no_torch() -> None:
    code = "import sys; from camelid.model.presets import PRESETS; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
