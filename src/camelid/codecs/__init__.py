"""Weight formats in blocks, one file each: how to pack, to unpack and to multiply with them.

    codec = FORMATS.load("q4_1")
    dense = codec.unpack(packed)

A format's name is ggml's in lower case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.registry import Registry

if TYPE_CHECKING:
    from camelid.codecs.base import BlockCodec

FORMATS: Registry[BlockCodec] = Registry(
    "weight format",
    "camelid.formats",
    {
        "q4_0": "camelid.codecs.q4_0:CODEC",
        "q4_1": "camelid.codecs.q4_1:CODEC",
        "q4_k": "camelid.codecs.q4_k:CODEC",
        "q5_0": "camelid.codecs.q5_0:CODEC",
        "q5_1": "camelid.codecs.q5_1:CODEC",
        "q5_k": "camelid.codecs.q5_k:CODEC",
        "q6_k": "camelid.codecs.q6_k:CODEC",
        "q8_0": "camelid.codecs.q8_0:CODEC",
    },
)
