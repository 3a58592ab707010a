"""torch.save files: the same tensors that torch reads, and never a program's wishes."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camelid.base.errors import CamelidError, FormatError, NotFoundError
from camelid.checkpoint.torch_zip import TorchFile, writing_torch_file
from fuzz_budget import budget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    grid = torch.randn(6, 8)
    return {
        "whole": grid,
        "a view": grid[1:5:2, ::3],
        "transposed": grid.t(),
        "bfloat": torch.randn(3, 2, 4).bfloat16(),
        "half": torch.randn(5).half(),
        "number": torch.tensor(3.5),
        "empty": torch.empty(0, 7),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def assert_equal(file: TorchFile, expected: dict[str, torch.Tensor]) -> None:
    assert file.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor), name
        assert file.tensors[name].num_bytes == tensor.nbytes


def with_program(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A torch.save file whose program has been changed."""
    torch.save({"x": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def test_what_torch_saves_is_read_without_copying(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "x.pth")

    file = TorchFile(tmp_path / "x.pth")

    assert_equal(file, tensors())
    assert file.read("whole").data_ptr() == file.read("whole").data_ptr()
    assert file.read("whole").data_ptr() == file.read("transposed").data_ptr()


def test_a_modules_state_dict_and_a_nested_one_are_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "module.pth")
    torch.save({"model": tensors()}, tmp_path / "nested.pth")

    assert_equal(TorchFile(tmp_path / "module.pth"), dict(module.state_dict()))
    assert_equal(TorchFile(tmp_path / "nested.pth"), tensors())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    names=st.lists(st.text(max_size=8), min_size=6, max_size=6, unique=True),
)
def test_what_we_write_both_read(tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype, names: list[str]) -> None:
    expected = {name: (torch.randn(shape) * 9).to(dtype) for name, shape in zip(names, shapes, strict=False)}
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in expected.items()}
    with (tmp_path / "x.pth").open("wb") as opened, writing_torch_file(opened, "x", described) as add:
        for tensor in expected.values():
            add(tensor)

    assert_equal(TorchFile(tmp_path / "x.pth"), expected)
    for mmap in (True, False):
        theirs = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)
        assert theirs.keys() == expected.keys()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in expected.items())


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(100_000.0)}, tmp_path / "x.pth")
    file = TorchFile(tmp_path / "x.pth")
    tensor = file.read("x")

    file.release("x")

    assert torch.equal(tensor, torch.arange(100_000.0))


class Payload:
    """Runs `function(*arguments)` in whoever believes the file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["value", "key", "alone"])
def test_a_payload_is_refused_where_it_lies_and_never_runs(tmp_path: Path, protocol: int, place: str) -> None:
    canary = tmp_path / "canary"
    payload = Payload(os.mkdir, str(canary))
    content: Any = {"value": {"x": torch.ones(2), "y": payload}, "key": {(payload, 1): 1}, "alone": payload}[place]
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)

    with pytest.raises(FormatError, match=r"no file of weights needs(.|\n)*x\.pth, byte \d+"):
        TorchFile(tmp_path / "x.pth")

    assert not canary.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert canary.exists(), "the payload would have run"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02cbuiltins\nexec\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.",
        b"\x80\x02ctorch.hub\nload\n.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
        b"\x80\x02\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x08\x00\x00\x00__dict__}sb.",
        b"\x80\x02X\x01\x00\x00\x00xQ.",
        b"\x80\x04}.",
        b"\x80\x02}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x00s.",  # a key whose hash may repeat
    ],
)
def test_programs_that_want_more_than_tensors(tmp_path: Path, program: bytes) -> None:
    before = set(sys.modules)
    path = with_program(tmp_path / "x.pth", lambda _: program)

    with pytest.raises(FormatError, match=r"x\.pth, byte \d+"):
        TorchFile(path)

    assert set(sys.modules) == before, "something was imported"


def rebuilt(offset: int, shape: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, key: str = "0") -> bytes:
    """A program for one float32 tensor over the storage of four numbers that the file has."""

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(obj, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"x": Tensor()})
    return stream.getvalue()


def test_the_forged_programs_are_right_but_for_their_lies(tmp_path: Path) -> None:
    path = with_program(tmp_path / "x.pth", lambda _: rebuilt(0, (2, 2), (2, 1)))

    assert torch.equal(TorchFile(path).read("x"), torch.arange(4.0).view(2, 2))


@pytest.mark.parametrize(
    "program",
    [
        rebuilt(0, (5,), (1,)),
        rebuilt(1, (4,), (1,)),
        rebuilt(0, (2, 2), (3, 1)),
        rebuilt(0, (2,), (-1,)),
        rebuilt(-1, (2,), (1,)),
        rebuilt(0, (2**40, 2**40), (0, 0)),
        rebuilt(0, (-1,), (1,)),
        rebuilt(0, (4,), (1,), numel=2**62),
        rebuilt(0, (4,), (1,), numel=-4),
        rebuilt(0, (1,) * 9, (1,) * 9),
        rebuilt(0, (4,), (1,), key="7"),
        rebuilt(0, (4,), (1,), key="../../version"),
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
        b"\x80\x02].",
        b"\x80\x02" + b"(" * 1000 + b".",
        b"\x80\x02u.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02h\x07.",
        b"\x80\x02",
        b"",
    ],
)
def test_descriptions_that_lie(tmp_path: Path, program: bytes) -> None:
    path = with_program(tmp_path / "x.pth", lambda _: program)

    with pytest.raises(FormatError):
        TorchFile(path)


def test_an_endless_program_is_refused_unread(tmp_path: Path) -> None:
    path = with_program(tmp_path / "x.pth", lambda program: program + bytes(17 << 20))

    with pytest.raises(FormatError, match="more than the"):
        TorchFile(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = with_program(tmp_path / "x.pth", lambda program: program, zipfile.ZIP_DEFLATED)

    with pytest.raises(FormatError, match="compressed"):
        TorchFile(path)


def test_the_form_used_before_2020_is_refused_with_a_hint(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)

    with pytest.raises(FormatError, match=r"before 2020(.|\n)*hint: "):
        TorchFile(tmp_path / "x.pth")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("a/b", "c")

    with pytest.raises(FormatError, match="no zip archive"):
        TorchFile(tmp_path / "text.pth")
    with pytest.raises(FormatError, match=r"no file of torch\.save"):
        TorchFile(tmp_path / "zip.pth")
    with pytest.raises(NotFoundError):
        TorchFile(tmp_path / "none.pth")


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data.replace(b"little", b"bigger"))

    with pytest.raises(FormatError, match="little-endian"):
        TorchFile(tmp_path / "x.pth")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()

    for length in range(0, len(data), 7):
        (tmp_path / "cut.pth").write_bytes(data[:length])
        with pytest.raises(FormatError):
            TorchFile(tmp_path / "cut.pth")


@pytest.mark.fuzz
@budget(300)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_byte_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    torch.save(tensors(), tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    (tmp_path / "x.pth").write_bytes(data)

    try:
        file = TorchFile(tmp_path / "x.pth")
        for name in file.tensors:
            file.read(name).clone()
    except CamelidError:
        pass


def test_a_directory_of_millions_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    end = data.rfind(b"PK\x05\x06")
    data[end + 8 : end + 20] = struct.pack("<2HII", 0xFFFE, 0xFFFE, 0x7FFFFFFF, 0)
    (tmp_path / "x.pth").write_bytes(data)

    with pytest.raises(FormatError, match="does not fit into the file"):
        TorchFile(tmp_path / "x.pth")


@pytest.mark.slow
def test_a_tensor_of_more_than_4_gigabytes(tmp_path: Path) -> None:
    """The 64-bit records: sizes and offsets that 32 bits do not hold."""
    numel = (1 << 32) + 8
    big = torch.zeros(numel, dtype=torch.uint8)
    big[-1] = 7
    small = torch.arange(5.0)
    described = {"big": (big.dtype, (numel,)), "small": (small.dtype, (5,))}
    with (tmp_path / "x.pth").open("wb") as opened, writing_torch_file(opened, "x", described) as add:
        add(big)
        add(small)

    file = TorchFile(tmp_path / "x.pth")
    theirs = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)

    assert file.read("big")[-1] == theirs["big"][-1] == 7
    assert torch.equal(file.read("small"), small)
    assert torch.equal(theirs["small"], small)
