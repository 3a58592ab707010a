from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from camelid.base.errors import FormatError, NotFoundError
from camelid.data.sources import ReadOptions, find_files, read_documents
from camelid.data.text_files import PIECE_BYTES

TEXTS = ["The first text.", "Ein zweiter Text: schön.", "第三の文章。"]


def texts_of(*patterns: Path | str, options: ReadOptions | None = None) -> list[str]:
    return [document.text for document in read_documents([str(pattern) for pattern in patterns], options)]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet_bytes(texts: list[str], folder: Path) -> bytes:
    path = folder / "made.parquet"
    parquet.write_table(pa.table({"text": texts, "other": range(len(texts))}), path, row_group_size=2)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".json", ".ndjson", ".parquet"])
def test_every_format_is_read_plain_and_compressed(tmp_path: Path, suffix: str, compression: str) -> None:
    content = {
        ".txt": "\n---\n".join(TEXTS).encode(),
        ".md": "\n---\n".join(TEXTS).encode(),
        ".parquet": parquet_bytes(TEXTS, tmp_path),
    }.get(suffix, json_lines(TEXTS))
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(compress(content))

    assert texts_of(path, options=ReadOptions(separator="---")) == TEXTS


def test_content_decides_where_the_suffix_lies_or_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl.gz").write_bytes(json_lines(["not compressed"]))
    (tmp_path / "rows").write_bytes(gzip.compress(json_lines(["json lines"])))
    (tmp_path / "table").write_bytes(parquet_bytes(["a table"], tmp_path))
    (tmp_path / "README").write_text("a text")

    names = ("plain.jsonl.gz", "rows", "table", "README")
    assert texts_of(*(tmp_path / name for name in names)) == ["not compressed", "json lines", "a table", "a text"]


def test_folders_and_globs_are_read_in_order_and_no_file_twice(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", ".hidden/d.txt", "deep/.e.txt", "notes.pdf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    assert texts_of(tmp_path) == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert texts_of(tmp_path / "**" / "*.txt") == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert texts_of(tmp_path / "d*", tmp_path / "b.txt", tmp_path) == ["deep/er/c.txt", "b.txt", "a.txt"]


def test_ids_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(json_lines(["one"]) + b"\n" + json_lines(["three"]))

    assert [(d.id, d.source) for d in read_documents([str(path)])] == [
        (f"{path}:1", str(path)),
        (f"{path}:3", str(path)),
    ]


def test_the_text_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"content": "here", "text": 5}\n')
    assert texts_of(tmp_path, options=ReadOptions(text_field="content")) == ["here"]


def test_a_long_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraph = "A line of the text.\n" * 500 + "\n"
    (tmp_path / "long.txt").write_text(paragraph * (3 * PIECE_BYTES // len(paragraph)))

    documents = texts_of(tmp_path / "long.txt")

    assert len(documents) == 3
    assert all(len(text) < 1.1 * PIECE_BYTES and text.startswith("A line") for text in documents)
    assert "\n\n".join(documents) == (tmp_path / "long.txt").read_text().strip("\n")


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("latin.txt", "fine\nfa\xe7ade\n".encode("latin-1"), 2, "not UTF-8"),
        ("wide.txt", "text".encode("utf-16"), 1, "UTF-16"),
        ("cut.jsonl", b'{"text": "a"}\n{"text": "b\n', 2, "malformed row"),
        ("array.json", b'[{"text": "a"}]', 1, "array"),
        ("number.jsonl", b'{"text": "a"}\n\n5\n', 3, "not an object"),
        ("other.jsonl", b'{"body": "a"}\n', 1, "no field 'text'"),
        ("null.jsonl", b'{"text": null}\n', 1, "not a text"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', 1, "surrogate"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, line: int, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        texts_of(tmp_path)
    assert caught.value.where == f"{tmp_path / name}:{line}"
    assert caught.value.hint


@pytest.mark.parametrize("name", ["cut.txt.gz", "cut.txt.zst", "cut.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(5000)).encode()
    whole = {
        "cut.txt.gz": gzip.compress(text),
        "cut.txt.zst": zstandard.ZstdCompressor().compress(text),
        "cut.parquet": parquet_bytes(["a text"], tmp_path),
    }[name]
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError) as caught:
        texts_of(tmp_path)
    assert name in str(caught.value.where)


def test_frames_one_after_the_other_are_one_text(tmp_path: Path) -> None:
    for name, compress in (("a.txt.gz", gzip.compress), ("b.txt.zst", zstandard.ZstdCompressor().compress)):
        (tmp_path / name).write_bytes(compress(b"first ") + compress(b"second"))
    assert texts_of(tmp_path) == ["first second"] * 2


def test_a_missing_or_empty_corpus_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "picture.png").write_bytes(b"")
    for pattern, error in (("empty.txt", FormatError), ("*.png", NotFoundError), ("none.txt", NotFoundError)):
        with pytest.raises(error) as caught:
            texts_of(tmp_path / pattern)
        assert caught.value.hint
    with pytest.raises(NotFoundError):
        texts_of()


def test_what_can_be_no_pattern_is_said() -> None:
    with pytest.raises(NotFoundError, match="is no pattern of file names"):
        find_files(["bad/**x"])
