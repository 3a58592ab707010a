"""SentencePiece's model file: a protobuf message, read and written without protobuf.

Only what decides ids and text is kept; field numbers are those of sentencepiece_model.proto. The message is a row of
fields, each a varint of (number << 3 | wire type) and its value (protobuf.dev, "Encoding").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from camelid.base.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class PieceType(IntEnum):
    """What a piece is for; GGUF's `token_type` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    type: int = PieceType.NORMAL


UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece vocabulary; defaults are Llama's."""

    pieces: tuple[Piece, ...]
    model_type: int = BPE
    byte_fallback: bool = True
    treat_whitespace_as_suffix: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    character_map: bytes = b""
    """SentencePiece's compiled normalisation rules; empty leaves text as it is."""


def parse(data: bytes, where: object) -> SentencePieceModel:
    """Read a model file.

    Raises:
        TokenizerError: the bytes are no SentencePiece model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data):
            if number == _PIECE and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == _NORMALIZER and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except ValueError as error:
        raise TokenizerError(f"this is no SentencePiece model: {error}", where=where) from error
    if not pieces:
        raise TokenizerError("this is no SentencePiece model: it has no pieces", where=where)
    character_map = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_number(trainer, 3, UNIGRAM),
        byte_fallback=bool(_number(trainer, 35, 0)),
        treat_whitespace_as_suffix=bool(_number(trainer, 24, 0)),
        unk_id=_number(trainer, 40, 0),
        bos_id=_number(trainer, 41, 1),
        eos_id=_number(trainer, 42, 2),
        pad_id=_number(trainer, 43, -1),
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
        escape_whitespaces=bool(_number(normalizer, 5, 1)),
        character_map=character_map if isinstance(character_map, bytes) else b"",
    )


def serialize(model: SentencePieceModel) -> bytes:
    """The model file that `parse` reads back, and that SentencePiece reads."""
    message = bytearray()
    for piece in model.pieces:
        text = piece.text.encode()
        content = b"\x0a" + _varint(len(text)) + text + b"\x15" + _FLOAT.pack(piece.score)
        if piece.type != PieceType.NORMAL:
            content += b"\x18" + _varint(piece.type)
        message += b"\x0a" + _varint(len(content)) + content
    trainer = {
        3: model.model_type,
        4: len(model.pieces),
        24: model.treat_whitespace_as_suffix,
        35: model.byte_fallback,
        40: model.unk_id,
        41: model.bos_id,
        42: model.eos_id,
        43: model.pad_id,
    }
    # A control piece is only known as begin, end or padding by its text.
    names = {45: model.unk_id, 46: model.bos_id, 47: model.eos_id, 48: model.pad_id}
    texts = {number: model.pieces[i].text.encode() for number, i in names.items() if 0 <= i < len(model.pieces)}
    message += _message(_TRAINER, trainer, texts)
    normalizer = {3: model.add_dummy_prefix, 4: model.remove_extra_whitespaces, 5: model.escape_whitespaces}
    name = b"camelid" if model.character_map else b"identity"
    message += _message(_NORMALIZER, normalizer, {1: name, 2: model.character_map})
    return bytes(message)


_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT: Final = struct.Struct("<f")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values; fixed-size values as their bytes.

    Raises:
        ValueError: the bytes are no message.
    """
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {position}")
        if wire == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _read_varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} before byte {position}")
        if size > len(data) - position:
            raise ValueError(f"a field of {size} bytes at byte {position} is longer than the file")
        yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned number of 7 bits a byte, low bits first, and where it ends."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number is cut off at byte {position}")


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    text, score = fields.get(1, b""), fields.get(2, bytes(4))
    kind = fields.get(3, PieceType.NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or kind not in set(PieceType):
        raise ValueError("a piece has fields of the wrong type")
    return Piece(text.decode(), _FLOAT.unpack(score)[0], int(kind))


def _number(fields: dict[int, int | bytes], number: int, default: int) -> int:
    """A field as a signed 32-bit number, which protobuf writes as 64 bits."""
    value = fields.get(number, default)
    if isinstance(value, bytes):
        return default
    return value - 2**64 if value >= 2**63 else value


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _message(number: int, numbers: Mapping[int, int], texts: Mapping[int, bytes]) -> bytes:
    content = b"".join(_varint(key << 3 | _VARINT) + _varint(int(value)) for key, value in numbers.items())
    for key, text in texts.items():
        content += _varint(key << 3 | _BYTES) + _varint(len(text)) + text
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content
