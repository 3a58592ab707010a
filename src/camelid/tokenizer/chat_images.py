"""Images in messages: OpenAI's parts of type "image_url", and those of type "image" that chat templates know.

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
    {"type": "image", "image": Path("cat.png")}
    {"type": "image"}                                  a place for an image that is given elsewhere

What shows an image is taken out at the door, so that a renderer sees a place and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from camelid.base.errors import ChatFormatError

IMAGE_TOKEN: Final = "<|image|>"
"""The control token that stands for an image, in every vocabulary of a Llama that has one."""

DETAILS: Final = (None, "auto", "high")
"""OpenAI's wishes for the resolution that change nothing here: images are read as finely as the model can."""


@dataclass(frozen=True, eq=False)
class Image:
    """A place for an image in a message."""

    source: object | None
    """What shows it, as the caller gave it and unopened; None: it is given elsewhere."""


def take_images(message: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], list[Image]]:
    """A message whose image parts are all `{"type": "image"}`, and what they showed, in order.

    Raises:
        ChatFormatError: an image part outside the schema; `where` is the message and the part.
    """
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message, []
    images, parts = [], []
    for index, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            images.append(Image(_source(part, f"{where}.content[{index}]")))
            parts.append({"type": "image"})
        else:
            parts.append(part)
    if images and message.get("role") != "user":
        raise ChatFormatError("only a user's message can show images", where=where)
    return {**message, "content": parts}, images


def _source(part: Mapping[str, Any], where: str) -> object | None:
    kind = part["type"]
    shown: object | None = part.get(kind)
    if unknown := sorted(map(str, part.keys() - {"type", kind})):
        raise ChatFormatError(
            f"a part of type {kind!r} has no {unknown[0]!r}", where=where, hint=f"what shows the image is {kind!r}"
        )
    if kind == "image":
        return shown
    if isinstance(shown, Mapping):
        if shown.get("detail") not in DETAILS:
            raise ChatFormatError(f"an image's detail cannot be {shown['detail']!r}", where=where, hint="leave it out")
        shown = shown.get("url")
    if shown is None:
        raise ChatFormatError(
            "an image_url has no url", where=where, hint='try {"image_url": {"url": "data:image/png;base64,…"}}'
        )
    return shown
