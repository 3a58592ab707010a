"""Which tensor gets which format: the tables that llama.cpp's quantiser prints for known models."""

from __future__ import annotations

import pytest

from camelid.base.errors import ConfigError
from camelid.checkpoint.gguf_mix import MIXES, Shape, choose_format, find_mix

LLAMA_2_7B = Shape(num_layers=32, queries_per_key=1, tied=False)
LLAMA_3_8B = Shape(num_layers=32, queries_per_key=4, tied=False)
LLAMA_3_70B = Shape(num_layers=80, queries_per_key=8, tied=False)
SMOLLM2 = Shape(num_layers=30, queries_per_key=3, tied=True)


def layers(mix: str, part: str, shape: Shape, columns: int = 4096) -> dict[str, list[int]]:
    """Format → the layers that have it."""
    formats = [choose_format(MIXES[mix], part, layer, columns, shape) for layer in range(shape.num_layers)]
    return {format: [i for i, one in enumerate(formats) if one == format] for format in sorted(set(formats))}


MORE_BITS_OF_32 = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
def test_q4_k_m_gives_more_bits_to_half_of_the_layers(part: str) -> None:
    found = layers("q4_k_m", part, LLAMA_2_7B)
    assert found["q6_k"] == MORE_BITS_OF_32
    assert sorted(found["q4_k"] + MORE_BITS_OF_32) == list(range(32))


@pytest.mark.parametrize("part", ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"])
def test_q4_k_m_leaves_the_rest_alone(part: str) -> None:
    assert layers("q4_k_m", part, LLAMA_2_7B) == {"q4_k": list(range(32))}


@pytest.mark.parametrize(
    ("mix", "part", "shape", "expected"),
    [
        ("q4_k_s", "attn_v", LLAMA_3_8B, {"q5_k": [0, 1, 2, 3]}),
        ("q4_k_s", "ffn_down", LLAMA_3_8B, {"q5_k": [0, 1, 2, 3]}),
        ("q3_k_m", "attn_v", LLAMA_3_8B, {"q5_k": [0, 1]}),
        ("q3_k_m", "ffn_down", LLAMA_3_8B, {"q5_k": [0, 1]}),
        ("q3_k_m", "attn_output", LLAMA_3_8B, {"q4_k": list(range(32))}),
        ("q3_k_l", "ffn_down", LLAMA_3_8B, {"q5_k": list(range(32))}),
        ("q2_k", "attn_v", LLAMA_3_8B, {"q4_k": list(range(32))}),
        ("q2_k", "attn_v", LLAMA_2_7B, {"q3_k": list(range(32))}),
        ("q4_k_m", "attn_v", LLAMA_3_70B, {"q4_k": []}),
        ("q5_k_m", "attn_v", LLAMA_3_8B, {"q6_k": MORE_BITS_OF_32}),
        ("iq4_nl", "attn_v", LLAMA_3_8B, {"q5_k": list(range(32))}),
        ("iq4_nl", "ffn_down", LLAMA_2_7B, {"q5_k": [0, 1, 2, 3]}),
    ],
)
def test_layers_that_get_another_format(mix: str, part: str, shape: Shape, expected: dict[str, list[int]]) -> None:
    found = layers(mix, part, shape)
    assert {format: found.get(format, []) for format in expected} == expected


@pytest.mark.parametrize(
    ("mix", "part", "shape", "columns", "expected"),
    [
        ("q4_k_m", "output", LLAMA_3_8B, 4096, "q6_k"),
        ("q8_0", "output", LLAMA_3_8B, 4096, "q8_0"),
        ("q4_0", "output", LLAMA_3_8B, 4096, "q6_k"),
        ("q4_k_m", "token_embd", LLAMA_3_8B, 4096, "q4_k"),
        ("q4_k_m", "token_embd", SMOLLM2, 2048, "q6_k"),
        ("q4_k_m", "token_embd", SMOLLM2, 576, "q8_0"),
        ("q4_0", "token_embd", SMOLLM2, 576, "q8_0"),
        ("q4_k_s", "attn_q", SMOLLM2, 576, "q5_0"),
        ("q5_k_s", "attn_q", SMOLLM2, 576, "q5_1"),
        ("q6_k", "attn_q", SMOLLM2, 576, "q8_0"),
        ("q2_k", "attn_q", SMOLLM2, 576, "q4_0"),
        ("q3_k_s", "attn_q", SMOLLM2, 576, "q4_0"),
        ("q4_0", "attn_q", SMOLLM2, 90, "float16"),
    ],
)
def test_matrices_outside_of_the_rules_and_odd_widths(
    mix: str, part: str, shape: Shape, columns: int, expected: str
) -> None:
    layer = None if part in ("output", "token_embd") else 12
    assert choose_format(MIXES[mix], part, layer, columns, shape) == expected


def test_an_unknown_mixture_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'q4_km'") as caught:
        find_mix("q4_km")
    assert "q4_k_m" in str(caught.value.hint)
