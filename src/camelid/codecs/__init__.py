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
    from camelid.codecs.torchao import DeviceFormat

FORMATS: Registry[BlockCodec] = Registry(
    "weight format",
    "camelid.formats",
    {
        "iq4_nl": "camelid.codecs.iq4_nl:CODEC",
        "q2_k": "camelid.codecs.q2_k:CODEC",
        "q3_k": "camelid.codecs.q3_k:CODEC",
        "q4_0": "camelid.codecs.q4_0:CODEC",
        "q4_1": "camelid.codecs.q4_1:CODEC",
        "q4_k": "camelid.codecs.q4_k:CODEC",
        "q5_0": "camelid.codecs.q5_0:CODEC",
        "q5_1": "camelid.codecs.q5_1:CODEC",
        "q5_k": "camelid.codecs.q5_k:CODEC",
        "q6_k": "camelid.codecs.q6_k:CODEC",
        "q8_0": "camelid.codecs.q8_0:CODEC",
        "iq1_m": "camelid.codecs.rare:IQ1_M",
        "iq1_s": "camelid.codecs.rare:IQ1_S",
        "iq2_s": "camelid.codecs.rare:IQ2_S",
        "iq2_xs": "camelid.codecs.rare:IQ2_XS",
        "iq2_xxs": "camelid.codecs.rare:IQ2_XXS",
        "iq3_s": "camelid.codecs.rare:IQ3_S",
        "iq3_xxs": "camelid.codecs.rare:IQ3_XXS",
        "iq4_xs": "camelid.codecs.rare:IQ4_XS",
        "mxfp4": "camelid.codecs.rare:MXFP4",
        "tq1_0": "camelid.codecs.rare:TQ1_0",
        "tq2_0": "camelid.codecs.rare:TQ2_0",
    },
)

DEVICE_FORMATS: Registry[DeviceFormat] = Registry(
    "weight format for a device",
    "camelid.device_formats",
    {
        "int4": "camelid.codecs.torchao:INT4",
        "int8": "camelid.codecs.torchao:INT8",
        "int8_dynamic": "camelid.codecs.torchao:INT8_DYNAMIC",
    },
)
"""Formats that weights take once they are loaded; no file holds them."""


def codec_of(format: str) -> BlockCodec | DeviceFormat:
    """What knows a packed weight's format, in a file or on a device.

    Raises:
        NotFoundError: no such format; the hint holds the nearest ones.
    """
    return DEVICE_FORMATS.load(format) if format in DEVICE_FORMATS else FORMATS.load(format)
