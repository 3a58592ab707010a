"""Pictures are opened whoever sent them, or refused with a reason."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import CamelidError, FormatError, NotFoundError, ResourceError
from camelid.model import image_files
from camelid.model.image_files import data_url, open_image

Image = pytest.importorskip("PIL.Image")


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (4, 2), (200, 30, 10))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_open_from_a_file_bytes_and_a_data_url(kind: str, tmp_path: Path) -> None:
    data = encoded(RED, kind)
    file = tmp_path / "picture"
    file.write_bytes(data)

    opened = [open_image(source) for source in (file, data, data_url(file))]

    assert data_url(file).startswith(f"data:image/{kind.lower()};base64,")
    assert {(image.mode, image.size) for image in opened} == {("RGB", (4, 2))}
    assert len({image.tobytes() for image in opened}) == 1


def test_what_is_transparent_is_white_and_what_lies_on_its_side_is_put_upright() -> None:
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = open_image(encoded(RED, "JPEG", exif=exif))

    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert turned.size == (2, 4)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8192), (12000, 9000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(
    size: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(ResourceError, match="too large"):
        open_image(png_that_claims(*size))
    assert not recwarn.list


def test_too_many_bytes_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as opened:
        opened.truncate(image_files.MAX_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", None)

    with pytest.raises(ResourceError, match="larger than"):
        open_image(file)
    with pytest.raises(ResourceError, match="larger than"):
        open_image("data:image/png;base64," + "A" * (image_files.MAX_BYTES // 3 * 4 + 8))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Path("no/such/file.png"), NotFoundError, "no such file"),
        (b"", FormatError, "no picture"),
        (b"GIF89a", FormatError, "picture"),
        (encoded(RED)[:-30], FormatError, "damaged"),
        (encoded(RED, "BMP"), FormatError, "no picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", FormatError, "no picture"),
        ("data:image/png;base64,AAAA*", FormatError, "data URL is damaged"),
        ("data:text/html;base64,AAAA", CamelidError, "must be a data URL"),
        ("/etc/passwd", CamelidError, "must be a data URL"),
        ("file:///etc/passwd", CamelidError, "must be a data URL"),
        ("https://example.com/cat.png", CamelidError, "must be a data URL"),
        (7, CamelidError, "not by a int"),
        (None, CamelidError, "not by a NoneType"),
    ],
)
def test_what_shows_no_image_is_refused(source: object, error: type[CamelidError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_image(source)


@settings(deadline=None)
@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6), st.integers(0, 60))
def test_damaged_files_are_pictures_or_format_errors(kind: int, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(encoded(RED, ["PNG", "JPEG", "WEBP", "GIF"][kind]))
    for position, value in changes:
        data[position % len(data)] = value
    data = data[: len(data) - cut]

    try:
        opened = open_image(bytes(data))
    except CamelidError:
        return
    assert opened.mode == "RGB"


def test_a_data_url_of_any_length_reads_back() -> None:
    url = "data:image/png;base64," + base64.b64encode(encoded(RED)).decode()

    assert open_image(url).tobytes() == RED.tobytes()
