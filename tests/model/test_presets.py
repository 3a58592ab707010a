"""The released sizes, to the last parameter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from camelid.model.layers import feed_forward_width
from camelid.model.llama4_config import Llama4Config
from camelid.model.presets import PRESETS
from camelid.model.sizes import num_parameters

RELEASED = {
    "cria": 32_385_536,
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
    "llama-3.2-11b-vision": 10_642_941_475,
    "llama-3.2-11b-vision-instruct": 10_670_220_835,
    "llama-3.2-90b-vision": 88_593_355_323,
    "llama-3.2-90b-vision-instruct": 88_593_355_323,
    "llama-3.3-70b": 70_553_706_496,
    "llama-4-scout": 107_769_861_120,
    "llama-4-scout-instruct": 107_769_861_120,
    "llama-4-maverick": 400_711_848_960,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
    "galactica-125m": 124_909_056,
    "galactica-1.3b": 1_314_557_952,
    "galactica-6.7b": 6_655_647_744,
    "galactica-30b": 29_968_103_424,
    "galactica-120b": 121_328_947_200,
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
    "llama-3.2-11b-vision": 128,
    "llama-3.2-90b-vision": 320,
    "llama-4-scout": 192,
    "opt-125m": 36,
    "opt-175b": 4608,
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


@pytest.mark.parametrize(("name", "billions"), [("llama-4-scout", 17.17), ("llama-4-maverick", 17.18)])
def test_active_parameters_are_those_of_one_expert_per_token(name: str, billions: float) -> None:
    config = PRESETS[name].config

    assert isinstance(config, Llama4Config)
    assert round(config.num_active_parameters / 1e9, 2) == billions


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_writing_and_reading(name: str) -> None:
    config = PRESETS[name].config

    assert type(config).from_hf(config.to_hf()) == config


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
