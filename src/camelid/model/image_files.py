"""Pictures from files, bytes and data URLs, opened without trusting them.

Pillow decodes them; it is an optional dependency (`pip install camelid[vision]`), since only models that read images
want it.
"""

from __future__ import annotations

import binascii
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from camelid.base.errors import CamelidError, FormatError, ResourceError
from camelid.base.files import existing_file, format_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""What is decoded: the formats of OpenAI's API. Pillow knows dozens more, whose decoders hardly anybody checks."""

MAX_BYTES: Final = 32 << 20
"""Of a file, or of what a data URL holds."""

MAX_PIXELS: Final = 1 << 26
"""67 million, 200 MB once decoded. A few kilobytes can claim billions, so this is asked of the header."""

DATA_URL: Final = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)

ImageSource: TypeAlias = "str | Path | bytes | Image"
"""A data URL, a file of this machine, a file's contents, or an image that is open already.

A text is never taken for a path: messages may come from far away, and would then read any file.
"""


def open_image(source: object) -> Image:
    """A picture in RGB, upright, on white where it was transparent; of a moving one the first.

    Args:
        source: an `ImageSource`.

    Raises:
        FormatError: not a picture, a damaged one, or one of another format.
        ResourceError: a picture of too many bytes or pixels, or Pillow is not installed.
        NotFoundError: there is no such file.
        CamelidError: something that shows no image.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ResourceError("reading images needs Pillow", hint="pip install 'camelid[vision]'") from error
    if isinstance(source, Image.Image):
        _check_pixels(source)
        return _on_white(source)
    data, where = _contents(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below Pillow's
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_pixels(image)
                return _on_white(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise FormatError("this is no picture of a known format", where=where, hint=f"known: {kinds}") from error
    except Image.DecompressionBombError as error:
        raise _too_large("more pixels than any") from error
    except MemoryError as error:
        raise ResourceError("there is no memory for the picture", where=where) from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        # What Pillow's decoders raise on damaged files.
        raise FormatError(f"the picture is damaged: {error}", where=where) from error


def data_url(path: Path) -> str:
    """A picture's file as a data URL, as it is.

    Raises:
        CamelidError: what `open_image` raises.
    """
    open_image(path)
    from PIL import Image

    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = Image.MIME[str(image.format)]
    return f"data:{kind};base64,{binascii.b2a_base64(data, newline=False).decode()}"


def _contents(source: object) -> tuple[bytes, str]:
    """The bytes, and what to call them in a message."""
    if isinstance(source, Path):
        size = existing_file(source).stat().st_size
        _check_bytes(size, str(source))
        return source.read_bytes(), str(source)
    if isinstance(source, bytes | bytearray):
        _check_bytes(len(source), "an image's bytes")
        return bytes(source), "an image's bytes"
    if not isinstance(source, str):
        raise CamelidError(
            f"an image is shown by a path, bytes or a data URL, not by a {type(source).__name__}",
            hint='try pathlib.Path("picture.png")',
        )
    head = DATA_URL.match(source)
    if head is None:
        raise CamelidError(
            f"an image's text must be a data URL, not {source[:60]!r}",
            hint="nothing is fetched from the network; a file of this machine is given as a pathlib.Path",
        )
    encoded = source[head.end() :]
    _check_bytes(len(encoded) * 3 // 4, "a data URL")
    try:
        return binascii.a2b_base64(encoded, strict_mode=True), "a data URL"
    except ValueError as error:
        raise FormatError(f"the data URL is damaged: {error}") from error


def _check_bytes(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise ResourceError(
            f"a picture of {format_bytes(size)} is larger than the {format_bytes(MAX_BYTES)} allowed", where=where
        )


def _check_pixels(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{image.width} × {image.height} are more pixels than the {MAX_PIXELS}")
    if image.width < 1 or image.height < 1:
        raise FormatError("the picture has no pixels")


def _too_large(what: str) -> ResourceError:
    return ResourceError(f"the picture is too large: {what} allowed", hint="scale it down")


def _on_white(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")
