"""torch.save files (`.pth`, `.pt`, `.bin`) of tensors, read without running them and written without torch.save.

Such a file is a zip archive with a description of its objects and one stored member for each storage. The description
is a program; torch's own reader runs it on a restricted machine, which was got round twice (CVE-2025-32434 and
CVE-2026-24747). Here it is run by `camelid.checkpoint.torch_program`, which can build nothing but data, and storages
are views into a memory map, so that a tensor costs no memory before it is used.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError, did_you_mean
from camelid.base.files import existing_file
from camelid.checkpoint import stored_zip, torch_program
from camelid.checkpoint.pages import map_privately, release_pages
from camelid.checkpoint.safetensors import MAX_DIMENSIONS, MAX_ELEMENTS, tensor_bytes
from camelid.checkpoint.torch_program import MAX_PROGRAM_BYTES, Opaque, TensorPlace

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

PROGRAM = "data.pkl"
BYTE_ORDER = "byteorder"

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""How a file of torch.save before 1.6 (2020) starts: a magic number, as a program of its own."""

MAX_NESTING = 3
"""Dictionaries around the one of tensors: {"model": …} and the like."""


@dataclass(frozen=True)
class TorchTensor:
    """One tensor of the file, held against the storage it looks into."""

    dtype: str
    """torch's name."""
    shape: tuple[int, ...]
    begin: int
    """Byte offset of its storage from the start of the file."""
    place: TensorPlace

    @property
    def num_bytes(self) -> int:
        """Of the tensor itself."""
        numel: int = math.prod(self.shape)
        return numel * self.place.storage.type.itemsize


class TorchFile:
    """An open torch.save file; its tensors are views into a private memory map.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is damaged, holds anything but tensors by name, or is a program that would do more than that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with existing_file(path).open("rb") as file:
            _refuse_legacy(file, path)
            self._members = stored_zip.read_directory(file, path)
            self._root = self._find_root()
            self.opaque: set[str] = set()
            """Names under which there are bytes, not a tensor."""
            self.tensors: Mapping[str, TorchTensor] = self._read_tensors(file)
            self._map: mmap.mmap | None = map_privately(file)

    def read(self, name: str) -> Tensor:
        """One tensor, as a view into the file where its storage is aligned.

        Raises:
            NotFoundError: the file holds no such tensor.
        """
        import torch

        tensor = self._tensor(name)
        assert self._map is not None, f"{self.path} is closed"
        dtype, storage = getattr(torch, tensor.dtype), tensor.place.storage
        if not math.prod(tensor.shape):
            return torch.empty(tensor.shape, dtype=dtype)
        num_bytes = storage.numel * storage.type.itemsize
        data_N = torch.frombuffer(self._map, dtype=torch.uint8, count=num_bytes, offset=tensor.begin)
        if tensor.begin % dtype.itemsize:
            data_N = data_N.clone()
        return data_N.view(dtype).as_strided(tensor.shape, tensor.place.stride, tensor.place.offset)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        tensor = self._tensor(name)
        if self._map is not None:
            storage = tensor.place.storage
            release_pages(self._map, tensor.begin, storage.numel * storage.type.itemsize)

    def close(self) -> None:
        """Let go of the file; the map itself lives as long as a tensor looks into it."""
        self._map = None

    def _tensor(self, name: str) -> TorchTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self.tensors))
        return tensor

    def _find_root(self) -> str:
        """The folder inside the archive that everything lies in."""
        roots = [name.removesuffix(PROGRAM) for name in self._members if name.endswith("/" + PROGRAM)]
        if len(roots) != 1:
            raise FormatError("this zip archive is no file of torch.save", where=self.path)
        return roots[0]

    def _read_tensors(self, file: IO[bytes]) -> dict[str, TorchTensor]:
        order = self._members.get(self._root + BYTE_ORDER)
        if order is not None and _read(file, order, 16) != b"little":
            raise FormatError("the numbers are not little-endian", where=f"{self.path}, byte {order.begin}")
        program = self._members[self._root + PROGRAM]
        if program.num_bytes > MAX_PROGRAM_BYTES:
            raise FormatError(
                f"the description of its objects has {program.num_bytes} bytes, more than the {MAX_PROGRAM_BYTES} "
                "allowed",
                where=f"{self.path}, byte {program.begin}",
            )
        found = torch_program.run(
            _read(file, program, program.num_bytes),
            lambda offset: f"{self.path}, byte {program.begin + offset}",
        )
        return {name: self._checked(name, place) for name, place in self._named(found).items()}

    def _named(self, found: Any) -> dict[str, TensorPlace]:
        """The tensors of a dictionary, which may lie under "model" or the like with nothing else beside them."""
        for _ in range(MAX_NESTING):
            if isinstance(found, dict) and len(found) == 1 and isinstance(next(iter(found.values())), dict):
                (found,) = found.values()
        if isinstance(found, dict) and all(isinstance(place, TensorPlace | Opaque) for place in found.values()):
            self.opaque = {str(name) for name, place in found.items() if isinstance(place, Opaque)}
            return {str(name): place for name, place in found.items() if isinstance(place, TensorPlace)}
        raise FormatError(
            "the file holds other things than tensors by name",
            where=self.path,
            hint="it may be a training checkpoint: save its weights alone",
        )

    def _checked(self, name: str, place: TensorPlace) -> TorchTensor:
        """A tensor whose every element lies inside its storage, and that inside the file."""
        storage = place.storage
        member = self._members.get(f"{self._root}data/{storage.key}")

        def fail(what: str) -> FormatError:
            offset = f", byte {member.begin}" if member else ""
            return FormatError(f"tensor {name[:200]!r}: {what}", where=f"{self.path}{offset}")

        if member is None:
            raise fail(f"there is no storage {storage.key[:80]!r}")
        if not 0 <= storage.numel <= MAX_ELEMENTS or storage.numel * storage.type.itemsize > member.num_bytes:
            raise fail(
                f"{storage.numel} elements of {storage.type.dtype} are not what its {member.num_bytes} bytes hold"
            )
        sizes = (place.offset, *place.shape, *place.stride)
        if len(place.shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_ELEMENTS for size in sizes):
            raise fail("an impossible shape")
        last = place.offset + sum((size - 1) * step for size, step in zip(place.shape, place.stride, strict=True))
        numel: int = math.prod(place.shape)
        if numel > storage.numel or (numel and last >= storage.numel):
            raise fail(f"the shape {list(place.shape)} reaches beyond its {storage.numel} elements")
        return TorchTensor(storage.type.dtype, place.shape, member.begin, place)


@contextmanager
def writing_torch_file(
    file: IO[bytes], root: str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> Iterator[Callable[[Tensor], None]]:
    """Gives a function that adds the next tensor of a file that torch and camelid read.

    Args:
        file: where to write; positioned at 0.
        root: the folder inside the archive, by custom the file's name without its ending.
        tensors: dtype and shape of each by name, in the order in which they are going to be added.
    """
    described = {name: (str(dtype).removeprefix("torch."), shape) for name, (dtype, shape) in tensors.items()}
    awaited = enumerate(tensors.items())
    with stored_zip.writing(file) as add_member:

        def add(tensor: Tensor) -> None:
            number, (name, (dtype, shape)) = next(awaited)
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), f"{name}: {tensor.dtype} {tensor.shape}"
            whole = tensor.detach().cpu().contiguous()
            pieces = [tensor_bytes(whole)] if whole.numel() else []
            add_member(f"{root}/data/{number}", whole.nbytes, pieces)

        for name, content in {PROGRAM: torch_program.write(described), BYTE_ORDER: b"little"}.items():
            add_member(f"{root}/{name}", len(content), [content])
        yield add
        add_member(f"{root}/version", 2, [b"3\n"])


def _read(file: IO[bytes], member: stored_zip.Member, at_most: int) -> bytes:
    file.seek(member.begin)
    return file.read(min(member.num_bytes, at_most))


def _refuse_legacy(file: IO[bytes], path: Path) -> None:
    head = file.read(len(LEGACY))
    if head.startswith(LEGACY):
        raise FormatError(
            "this is a torch.save file of the form used before 2020, which cannot be read safely",
            where=f"{path}, byte 0",
            hint="save it again with a current torch, on a machine that may be lost, or take the model as safetensors",
        )
    if not head.startswith(stored_zip.MARK):
        raise FormatError("this is no torch.save file: it is no zip archive", where=f"{path}, byte 0")
