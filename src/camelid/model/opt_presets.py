"""The shapes of OPT and Galactica, as data. Needs no torch.

Sources: OPT, arXiv 2205.01068, Table 1, and metaseq's job constants; Galactica, 2211.09085, §4 and Table 5.

Galactica's shapes are the paper's, without biases in projections and norms; its authors' loader counts sizes with
biases, and a converted folder may hold them (as zeros). A folder is read by its own config either way.
"""

from __future__ import annotations

from typing import Final

from camelid.model.opt_config import OPTConfig
from camelid.model.preset import Preset, family

OPT_LICENCE = "OPT non-commercial research licence"
GALACTICA_LICENCE = "CC BY-NC 4.0"


def _opt(num_layers: int, hidden_size: int, num_heads: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=50272,
        hidden_size=hidden_size,
        ffn_dim=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        init_std=0.006,
        dtype="float16",
    )


def _galactica(num_layers: int, hidden_size: int, num_heads: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=50000,
        hidden_size=hidden_size,
        ffn_dim=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        activation_function="gelu",
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        bos_token_id=0,
        dtype="float16",
    )


OPT_350M: Final = OPTConfig(
    vocab_size=50272,
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
    init_std=0.006,
    dtype="float16",
)

OPT_PRESETS: dict[str, Preset] = {
    **family(
        "OPT",
        "2022-05",
        OPT_LICENCE,
        {
            "opt-125m": (_opt(12, 768, 12), "facebook/opt-125m"),
            "opt-350m": (OPT_350M, "facebook/opt-350m"),
            "opt-1.3b": (_opt(24, 2048, 32), "facebook/opt-1.3b"),
            "opt-2.7b": (_opt(32, 2560, 32), "facebook/opt-2.7b"),
            "opt-6.7b": (_opt(32, 4096, 32), "facebook/opt-6.7b"),
            "opt-13b": (_opt(40, 5120, 40), "facebook/opt-13b"),
            "opt-30b": (_opt(48, 7168, 56), "facebook/opt-30b"),
            "opt-66b": (_opt(64, 9216, 72), "facebook/opt-66b"),
            "opt-175b": (_opt(96, 12288, 96), None),
        },
        pickled=True,
    ),
    **family(
        "Galactica",
        "2022-11",
        GALACTICA_LICENCE,
        {
            "galactica-125m": (_galactica(12, 768, 12), "facebook/galactica-125m"),
            "galactica-1.3b": (_galactica(24, 2048, 32), "facebook/galactica-1.3b"),
            "galactica-6.7b": (_galactica(32, 4096, 32), "facebook/galactica-6.7b"),
            "galactica-30b": (_galactica(48, 7168, 56), "facebook/galactica-30b"),
            "galactica-120b": (_galactica(96, 10240, 80), "facebook/galactica-120b"),
        },
        pickled=True,
    ),
}
"""Name → preset, small ones first."""
