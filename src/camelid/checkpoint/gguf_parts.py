"""GGUF models in several files, `name-00001-of-00003.gguf` and so on (llama.cpp, tools/gguf-split).

The first part holds the metadata of the model; each part holds its number (`split.no`, from 0), how many there are
(`split.count`), and a share of the tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.gguf_header import GET_IT_AGAIN, read_gguf_header

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.base.gguf_header import GGUFHeader

_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def is_later_part(path: Path) -> bool:
    """Whether a file's name is that of a part behind the first."""
    match = _PART.fullmatch(path.name)
    return match is not None and match["number"] != "00001"


def read_parts(path: Path) -> tuple[GGUFHeader, dict[str, Path]]:
    """The header of a model in one file or in several, and which file each tensor is in.

    Args:
        path: the only file, or the first one.

    Returns:
        The first file's header with every part's tensors, their offsets from the start of the file that has them.

    Raises:
        NotFoundError: a file is missing.
        FormatError: a file is damaged, is not the part that its name says, or repeats another's tensor.
    """
    header = read_gguf_header(path)
    files = dict.fromkeys(header.tensors, path)
    count = _number(header, "split.count", path, default=1)
    if count <= 1:
        return header, files
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"this is one of {count} parts of a model, but is not named like one",
            where=path,
            hint=f"its name should end in -00001-of-{count:05d}.gguf",
        )
    if (number := _number(header, "split.no", path)) != 0:
        first = path.with_name(f"{match['name']}-00001-of-{count:05d}.gguf")
        raise FormatError(f"this is part {number + 1} of {count} of a model", where=path, hint=f"open '{first.name}'")
    tensors = dict(header.tensors)
    for number in range(1, count):
        part = path.with_name(f"{match['name']}-{number + 1:05d}-of-{count:05d}.gguf")
        if not part.exists():
            raise NotFoundError(f"part {number + 1} of {count} of the model is missing", where=part, hint="get it too")
        other = read_gguf_header(part)
        if (_number(other, "split.no", part), _number(other, "split.count", part)) != (number, count):
            raise FormatError(f"this is not part {number + 1} of {count}", where=part, hint=GET_IT_AGAIN)
        for name, info in other.tensors.items():
            if name in tensors:
                raise FormatError(f"the tensor '{name}' is in '{files[name].name}' already", where=part)
            tensors[name], files[name] = info, part
    expected = _number(header, "split.tensors.count", path, default=len(tensors))
    if expected != len(tensors):
        raise FormatError(f"the {count} parts hold {len(tensors)} tensors, not {expected}", where=path)
    return replace(header, tensors=tensors), files


def _number(header: GGUFHeader, key: str, path: Path, *, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise FormatError(f"expected a whole number, not {value!r}", where=f"{path}, {key}")
    return value
