"""Every released Llama's shape, as data, and the small ones that are raised or tried on a laptop. Needs no torch.

    PRESETS["llama-3.1-8b"].config.num_parameters

OPT and Galactica, which came before them, are in `camelid.model.opt_presets`.

Sources: LLaMA, arXiv 2302.13971, Table 2; Llama 2, 2307.09288, Table 1; Code Llama, 2308.12950, §2; Llama 3,
2407.21783, Table 3; the `params.json` files and model cards of the releases. Where sources disagree:

- LLaMA 1's norm epsilon is 1e-6 up to 33B and 1e-5 at 65B in the released `params.json`; the code's default is 1e-5.
- Llama 3.2's rotary factor is 32; Meta's reference code states 8 for all releases.
- Code Llama 70B: the Python and Instruct variants had no long-context stage. They are not listed: read their config.
- Llama 4 Scout's rotary factor is 16 with both frequency factors 1, as in Meta's code; a converter without these keys
  writes 8, 1 and 4. Counts are those of the text part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from camelid.model.llama4_config import Llama4Config
from camelid.model.llama_config import LlamaConfig
from camelid.model.mllama_config import MllamaConfig, MllamaVisionConfig
from camelid.model.opt_presets import OPT_PRESETS
from camelid.model.preset import Preset, family
from camelid.model.rope import Llama3Rope, RopeParameters

LLAMA_1_LICENCE = "LLaMA non-commercial research licence"
LLAMA_2_LICENCE = "Llama 2 Community License"
LLAMA_3_LICENCE = "Meta Llama 3 Community License"
LLAMA_3_1_LICENCE = "Llama 3.1 Community License"
LLAMA_3_2_LICENCE = "Llama 3.2 Community License"
LLAMA_3_3_LICENCE = "Llama 3.3 Community License"
LLAMA_4_LICENCE = "Llama 4 Community License"

PLAIN_7B: Final = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    dtype="float16",
)
PLAIN_13B: Final = replace(
    PLAIN_7B,
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
)
PLAIN_33B: Final = replace(
    PLAIN_7B,
    hidden_size=6656,
    intermediate_size=17920,
    num_hidden_layers=60,
    num_attention_heads=52,
    num_key_value_heads=52,
)
PLAIN_65B: Final = replace(
    PLAIN_7B,
    hidden_size=8192,
    intermediate_size=22016,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=64,
    rms_norm_eps=1e-5,
)
LLAMA_2_7B: Final = replace(PLAIN_7B, rms_norm_eps=1e-5, max_position_embeddings=4096)
LLAMA_2_13B: Final = replace(PLAIN_13B, rms_norm_eps=1e-5, max_position_embeddings=4096)
LLAMA_2_70B: Final = replace(PLAIN_65B, intermediate_size=28672, num_key_value_heads=8, max_position_embeddings=4096)


def _code(base: LlamaConfig, vocab_size: int) -> LlamaConfig:
    rope = RopeParameters(rope_theta=1e6)
    return replace(base, vocab_size=vocab_size, rope_parameters=rope, max_position_embeddings=16384, rms_norm_eps=1e-5)


LLAMA_3_8B: Final = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters=RopeParameters(rope_theta=500_000.0),
    bos_token_id=128000,
    eos_token_id=128001,
    dtype="bfloat16",
)
LLAMA_3_70B: Final = replace(
    LLAMA_3_8B, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
)


def _long(base: LlamaConfig, factor: float) -> LlamaConfig:
    rope = Llama3Rope(
        rope_theta=500_000.0,
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return replace(base, rope_parameters=rope, max_position_embeddings=131072)


LLAMA_3_1_8B: Final = _long(LLAMA_3_8B, 8.0)
LLAMA_3_1_70B: Final = _long(LLAMA_3_70B, 8.0)
LLAMA_3_1_405B: Final = replace(
    LLAMA_3_1_70B,
    hidden_size=16384,
    intermediate_size=53248,
    num_hidden_layers=126,
    num_attention_heads=128,
)
LLAMA_3_2_1B: Final = replace(
    _long(LLAMA_3_8B, 32.0),
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    head_dim=64,
    tie_word_embeddings=True,
)
LLAMA_3_2_3B: Final = replace(
    LLAMA_3_2_1B, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128
)
LLAMA_3_2_11B_VISION: Final = MllamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=8,
    cross_attention_layers=tuple(range(3, 40, 5)),
    rope_parameters=LLAMA_3_1_8B.rope_parameters,
    dtype="bfloat16",
)
LLAMA_3_2_90B_VISION: Final = replace(
    LLAMA_3_2_11B_VISION,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=100,
    num_attention_heads=64,
    head_dim=128,
    cross_attention_layers=tuple(range(3, 100, 5)),
    vision=MllamaVisionConfig(image_size=560),
)


def _instructed(base: MllamaConfig) -> MllamaConfig:
    return replace(base, vision=MllamaVisionConfig(image_size=560), eos_token_id=(128001, 128008, 128009))


LLAMA_4_SCOUT: Final = Llama4Config(
    vocab_size=202048,
    hidden_size=5120,
    intermediate_size=8192,
    intermediate_size_mlp=16384,
    num_hidden_layers=48,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    num_local_experts=16,
    max_position_embeddings=262144,
    rope_parameters=Llama3Rope(
        rope_theta=500_000.0,
        factor=16.0,
        low_freq_factor=1.0,
        high_freq_factor=1.0,
        original_max_position_embeddings=8192,
    ),
    bos_token_id=200000,
    eos_token_id=(200001, 200007, 200008),
    pad_token_id=200018,
    dtype="bfloat16",
)
LLAMA_4_MAVERICK: Final = Llama4Config(
    vocab_size=202048,
    hidden_size=5120,
    intermediate_size=8192,
    intermediate_size_mlp=16384,
    num_hidden_layers=48,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    num_local_experts=128,
    interleave_moe_layer_step=2,
    use_qk_norm=False,
    max_position_embeddings=1048576,
    bos_token_id=200000,
    eos_token_id=(200001, 200007, 200008),
    pad_token_id=200018,
    dtype="bfloat16",
)
STORIES_15M: Final = LlamaConfig(
    vocab_size=32000,
    hidden_size=288,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=6,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
STORIES_110M: Final = replace(
    STORIES_15M,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    max_position_embeddings=1024,
)
CRIA: Final = LlamaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=10,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
"""The model that recipes/cria.toml raises."""

SMOLLM2_135M: Final = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters=RopeParameters(rope_theta=100_000.0),
    tie_word_embeddings=True,
    eos_token_id=2,
    dtype="bfloat16",
)


PRESETS: dict[str, Preset] = {
    **family(
        "Stories",
        "2023-07",
        "MIT",
        {"stories15m": (STORIES_15M, None), "stories110m": (STORIES_110M, None)},
    ),
    **family("cria", "2026-11", "Apache-2.0", {"cria": (CRIA, None)}),
    **family(
        "SmolLM2", "2024-11", "Apache-2.0", {"smollm2-135m": (SMOLLM2_135M, "HuggingFaceTB/SmolLM2-135M-Instruct")}
    ),
    **family(
        "LLaMA",
        "2023-02",
        LLAMA_1_LICENCE,
        {
            "llama-7b": (PLAIN_7B, None),
            "llama-13b": (PLAIN_13B, None),
            "llama-33b": (PLAIN_33B, None),
            "llama-65b": (PLAIN_65B, None),
        },
    ),
    **family(
        "Llama 2",
        "2023-07",
        LLAMA_2_LICENCE,
        {
            "llama-2-7b": (LLAMA_2_7B, "meta-llama/Llama-2-7b-hf"),
            "llama-2-13b": (LLAMA_2_13B, "meta-llama/Llama-2-13b-hf"),
            "llama-2-70b": (LLAMA_2_70B, "meta-llama/Llama-2-70b-hf"),
        },
    ),
    **family(
        "Code Llama",
        "2023-08",
        LLAMA_2_LICENCE,
        {
            "codellama-7b": (_code(LLAMA_2_7B, 32016), "codellama/CodeLlama-7b-hf"),
            "codellama-7b-python": (_code(LLAMA_2_7B, 32000), "codellama/CodeLlama-7b-Python-hf"),
            "codellama-13b": (_code(LLAMA_2_13B, 32016), "codellama/CodeLlama-13b-hf"),
            "codellama-13b-python": (_code(LLAMA_2_13B, 32000), "codellama/CodeLlama-13b-Python-hf"),
            "codellama-34b": (
                _code(replace(PLAIN_65B, num_hidden_layers=48, num_key_value_heads=8), 32000),
                "codellama/CodeLlama-34b-hf",
            ),
            "codellama-70b": (_code(LLAMA_2_70B, 32016), "codellama/CodeLlama-70b-hf"),
        },
    ),
    **family(
        "Llama 3",
        "2024-04",
        LLAMA_3_LICENCE,
        {
            "llama-3-8b": (LLAMA_3_8B, "meta-llama/Meta-Llama-3-8B"),
            "llama-3-70b": (LLAMA_3_70B, "meta-llama/Meta-Llama-3-70B"),
        },
    ),
    **family(
        "Llama 3.1",
        "2024-07",
        LLAMA_3_1_LICENCE,
        {
            "llama-3.1-8b": (LLAMA_3_1_8B, "meta-llama/Llama-3.1-8B"),
            "llama-3.1-70b": (LLAMA_3_1_70B, "meta-llama/Llama-3.1-70B"),
            "llama-3.1-405b": (LLAMA_3_1_405B, "meta-llama/Llama-3.1-405B"),
        },
    ),
    **family(
        "Llama 3.2",
        "2024-09",
        LLAMA_3_2_LICENCE,
        {
            "llama-3.2-1b": (LLAMA_3_2_1B, "meta-llama/Llama-3.2-1B"),
            "llama-3.2-3b": (LLAMA_3_2_3B, "meta-llama/Llama-3.2-3B"),
        },
    ),
    **family(
        "Llama 3.2 Vision",
        "2024-09",
        LLAMA_3_2_LICENCE,
        {
            "llama-3.2-11b-vision": (LLAMA_3_2_11B_VISION, "meta-llama/Llama-3.2-11B-Vision"),
            "llama-3.2-11b-vision-instruct": (
                _instructed(LLAMA_3_2_11B_VISION),
                "meta-llama/Llama-3.2-11B-Vision-Instruct",
            ),
            "llama-3.2-90b-vision": (LLAMA_3_2_90B_VISION, "meta-llama/Llama-3.2-90B-Vision"),
            "llama-3.2-90b-vision-instruct": (
                _instructed(LLAMA_3_2_90B_VISION),
                "meta-llama/Llama-3.2-90B-Vision-Instruct",
            ),
        },
    ),
    **family(
        "Llama 3.3",
        "2024-12",
        LLAMA_3_3_LICENCE,
        {"llama-3.3-70b": (LLAMA_3_1_70B, "meta-llama/Llama-3.3-70B-Instruct")},
    ),
    **family(
        "Llama 4",
        "2025-04",
        LLAMA_4_LICENCE,
        {
            "llama-4-scout": (LLAMA_4_SCOUT, "meta-llama/Llama-4-Scout-17B-16E"),
            "llama-4-scout-instruct": (
                replace(LLAMA_4_SCOUT, max_position_embeddings=10485760),
                "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            ),
            "llama-4-maverick": (LLAMA_4_MAVERICK, "meta-llama/Llama-4-Maverick-17B-128E"),
        },
    ),
    **OPT_PRESETS,
}
"""Name → preset, from the oldest release to the newest within a family, small ones first."""
