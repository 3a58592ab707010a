from __future__ import annotations

import io
import json
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import CamelidError, FormatError, NotFoundError
from camelid.checkpoint.safetensors import DTYPES, MAX_HEADER_BYTES, SafetensorsFile, write_safetensors
from fuzz_budget import budget

if TYPE_CHECKING:
    from pathlib import Path

ALL_DTYPES = sorted(name for name, _ in DTYPES.values())


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(2, 3).half(),
        "brain": torch.randn(4, 5).bfloat16(),
        "single": torch.randn(7),
        "double": torch.randn(2, 2, 2).double(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "index": torch.arange(6).view(2, 3),
    }


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    write_safetensors(
        file, [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()], tensors.__getitem__, {"format": "pt"}
    )
    return file.getvalue()


def test_reads_what_the_reference_library_wrote(tmp_path: Path) -> None:
    tensors = some_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})

    file = SafetensorsFile(tmp_path / "x.safetensors")

    assert file.header.metadata == {"format": "pt"}
    assert file.entries.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert torch.equal(file.read(name), expected), name
        assert file.read(name).dtype == expected.dtype


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = some_tensors()
    (tmp_path / "x.safetensors").write_bytes(written(tensors))

    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")

    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    bits = torch.randint(0, 2, (4, 16), dtype=torch.uint8)
    original = bits.view(getattr(torch, dtype)) if dtype != "bool" else bits.bool()
    (tmp_path / "x.safetensors").write_bytes(written({"x": original}))

    again = SafetensorsFile(tmp_path / "x.safetensors").read("x")

    assert again.dtype == original.dtype
    assert torch.equal(again.view(torch.uint8), original.view(torch.uint8))


def test_writing_converts_and_makes_contiguous(tmp_path: Path) -> None:
    original = torch.randn(4, 6).t()
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_safetensors(file, [("x", torch.bfloat16, (6, 4))], lambda _: original)

    assert torch.equal(SafetensorsFile(tmp_path / "x.safetensors").read("x"), original.bfloat16())


def test_tensors_are_views_that_outlive_the_file_and_never_write_to_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written({"x": torch.zeros(1000)}))
    before = path.read_bytes()

    file = SafetensorsFile(path)
    first, second = file.read("x"), file.read("x")
    file.close()
    first.fill_(1.0)

    assert first.data_ptr() == second.data_ptr(), "reading must not copy"
    assert second.sum() == 1000
    assert path.read_bytes() == before


def test_a_tensor_at_an_odd_offset_is_readable(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = {"a": tensor("U8", (1,), (0, 1)), "b": tensor("F32", (2,), (1, 9))}
    path = write(tmp_path / "x.safetensors", header, b"\x07" + values.numpy().tobytes())

    read = SafetensorsFile(path).read("b")

    assert torch.equal(read, values)
    assert read.data_ptr() % 4 == 0


def test_an_unknown_tensor_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(written({"model.norm.weight": torch.ones(2)}))

    with pytest.raises(NotFoundError, match=r"did you mean 'model\.norm\.weight'"):
        SafetensorsFile(tmp_path / "x.safetensors").read("model.norm.weigth")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        SafetensorsFile(tmp_path / "x.safetensors")


LIES = {
    "one byte of data is missing": ({"x": tensor()}, bytes(7), "ends at byte"),
    "one byte too much": ({"x": tensor()}, bytes(9), "1 bytes follow"),
    "the shape is larger than the bytes": ({"x": tensor(shape=(3,))}, bytes(8), "takes 12 bytes"),
    "a negative size": ({"x": tensor(shape=(-2,))}, bytes(8), "impossible shape"),
    "a size that overflows 64 bits": ({"x": tensor(shape=(2**40, 2**40))}, bytes(8), "impossible shape"),
    "zero times an overflow": ({"x": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b"", "impossible shape"),
    "a fractional size": ({"x": tensor(shape=(2.0,))}, bytes(8), "impossible shape"),
    "a boolean size": ({"x": tensor("U8", shape=(True,), offsets=(0, 1))}, bytes(1), "impossible shape"),
    "many dimensions": ({"x": tensor(shape=[1] * 1000 + [2])}, bytes(8), "impossible shape"),
    "a shape that is no list": ({"x": tensor(shape="2")}, bytes(8), "impossible shape"),
    "offsets backwards": ({"x": tensor(shape=(0,), offsets=(8, 0))}, bytes(8), "impossible data_offsets"),
    "three offsets": ({"x": tensor(offsets=(0, 4, 8))}, bytes(8), "impossible data_offsets"),
    "offsets far outside": ({"x": tensor(offsets=(2**62, 2**62 + 8))}, bytes(8), "gap"),
    "an overlap": ({"x": tensor(), "y": tensor(offsets=(4, 12))}, bytes(12), "overlaps"),
    "the same bytes twice": ({"x": tensor(), "y": tensor()}, bytes(8), "overlaps"),
    "a gap": ({"x": tensor(), "y": tensor(offsets=(9, 17))}, bytes(17), "gap"),
    "an unknown dtype": ({"x": tensor("F31")}, bytes(8), "unknown dtype"),
    "a dtype that is no text": ({"x": tensor(dtype=["F32"])}, bytes(8), "unknown dtype"),  # type: ignore[arg-type]
    "a missing key": ({"x": {"dtype": "F32", "shape": [2]}}, bytes(8), "expected exactly"),
    "an extra key": ({"x": tensor() | {"code": "import os"}}, bytes(8), "expected exactly"),
    "an entry that is no object": ({"x": 3}, bytes(8), "expected exactly"),
    "metadata that is no object": ({"__metadata__": [1]}, b"", "__metadata__"),
    "metadata with numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "a header that is a list": (b"[]", b"", "not a JSON object"),
    "a header that is no JSON": (b"{nonsense", b"", "not JSON"),
    "a header that is no UTF-8": (b'{"\xff": 1}', b"", "not JSON"),
    "a header 60,000 levels deep": (b'{"x":' + b"[" * 60_000, b"", "not JSON"),
    "a number of 10,000 digits": (b'{"x":' + b"9" * 10_000 + b"}", b"", "not JSON"),
    "one name twice": (b'{"x": 1, "x": 2}', b"", "twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, data, reason = LIES[lie]
    path = write(tmp_path / "x.safetensors", header, data)

    with pytest.raises(FormatError, match=reason) as caught:
        SafetensorsFile(path)

    assert caught.value.where is not None
    assert str(path) in caught.value.where
    assert "byte " in caught.value.where


@pytest.mark.parametrize("length", [1, 1000, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_costs_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length))

    tracemalloc.start()
    with pytest.raises(FormatError, match="claims"):
        SafetensorsFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    whole = written({"a": torch.ones(3), "b": torch.ones(2, 2).half()})

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            SafetensorsFile(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SIZES = st.lists(st.integers(-1, 9) | st.sampled_from([2**31, 2**32, 2**63, 2**64]), max_size=3)
FIELDS = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "F4", ""]) | JSON, "shape": SIZES | JSON, "data_offsets": SIZES | JSON}
)
HEADERS = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), FIELDS | JSON, max_size=4)


@pytest.mark.fuzz
@budget(300)
@given(header=HEADERS | st.binary(max_size=60), data=st.binary(max_size=40))
def test_no_header_does_more_than_raise_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, header: Any, data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header, data)

    try:
        file = SafetensorsFile(path)
    except CamelidError:
        return
    for name, entry in file.entries.items():
        assert tuple(file.read(name).shape) == entry.shape


@pytest.mark.fuzz
@budget(300)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_flipped_byte_in_the_header_never_reads_outside(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    content = bytearray(written({"a": torch.ones(3), "b": torch.ones(2, 2).half()}))
    content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)

    try:
        file = SafetensorsFile(path)
    except CamelidError:
        return
    assert sum(entry.num_bytes for entry in file.entries.values()) + file.header.num_bytes == len(content)
    for name in file.entries:
        file.read(name).clone()
