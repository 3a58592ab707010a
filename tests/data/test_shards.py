from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from corpora import shards_of, stories, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import FormatError, NotFoundError, RecipeError, TokenizerError
from camelid.data import shard_writer
from camelid.data.manifest import Manifest, read_manifest
from camelid.data.shards import TokenShards, write_shards
from camelid.tokenizer.base import SpecialTokens

ROOT = Path(__file__).parent.parent.parent


class OtherTokenizer(ByteTokenizer):
    vocab_size = 260

    def token_bytes(self, token_id: int) -> bytes:
        return b"new" if token_id == 259 else super().token_bytes(token_id)


class LargeTokenizer(ByteTokenizer):
    """Its bytes have ids above 65,535, and it has no begin-of-sequence token."""

    special = SpecialTokens(ids={"<|endoftext|>": 256}, eos=256)
    vocab_size = 70_256

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        return self.framed([70_000 + byte for byte in text.encode()], bos=bos, eos=eos)

    def token_bytes(self, token_id: int) -> bytes:
        if 256 < token_id < 70_000:
            raise TokenizerError("unused")
        return bytes([token_id - 70_000]) if token_id != 256 and token_id >= 70_000 else super().token_bytes(token_id)


def interrupted_after(texts: list[str], count: int) -> Iterator[str]:
    yield from texts[:count]
    raise KeyboardInterrupt


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is a task of its own, so that shards are closed while later texts are still to be read."""
    monkeypatch.setattr(shard_writer, "TASK_LENGTH", 1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=30, deadline=None)
@given(texts=texts, tokens_per_shard=st.integers(20, 400))
def test_every_document_comes_back_framed(texts: list[str], tokens_per_shard: int) -> None:
    with TemporaryDirectory() as folder:
        shards = shards_of(texts, Path(folder), tokens_per_shard)

        expected = [[256, *text.encode("utf-8", "replace"), 256] for text in texts]
        assert [shards.document(i).tolist() for i in range(len(shards))] == expected
        assert shards.tokens(0, shards.num_tokens).tolist() == list(chain.from_iterable(expected))
        assert [shards.document_bytes(i) for i in range(len(shards))] == [len(text.encode()) for text in texts]
        assert shards.num_bytes == sum(len(text.encode()) for text in texts)
        shards.verify()


@settings(max_examples=30, deadline=None)
@given(texts=texts, data=st.data())
def test_a_stretch_of_the_stream_knows_where_documents_start(texts: list[str], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        shards = shards_of(texts, Path(folder))
        start = data.draw(st.integers(0, shards.num_tokens))
        stop = data.draw(st.integers(start, shards.num_tokens))

        sizes = [len(shards.document(i)) for i in range(len(shards))]
        all_starts = np.cumsum([0, *sizes[:-1]]).tolist()
        assert shards.document_starts(start, stop).tolist() == [s for s in all_starts if start <= s < stop]
        assert len(shards.tokens(start, stop)) == stop - start


def test_anything_with_a_text_is_a_document(tmp_path: Path) -> None:
    @dataclass
    class Document:
        text: str

    manifest = write_shards([Document("one"), "two"], ByteTokenizer(), tmp_path)

    assert manifest.train[0].num_documents == 2


def test_ids_above_16_bits_and_a_vocabulary_without_begin(tmp_path: Path) -> None:
    tokenizer = LargeTokenizer()

    manifest = write_shards(["ab"], tokenizer, tmp_path)

    assert (manifest.dtype, manifest.bos, manifest.eos) == ("uint32", None, 256)
    assert TokenShards(tmp_path, tokenizer).document(0).tolist() == [70_097, 70_098, 256]


def test_empty_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    manifest = write_shards(["", "a", ""], ByteTokenizer(), tmp_path)

    assert manifest.num_empty_documents == 2
    assert manifest.train[0].num_documents == 1


@pytest.mark.usefixtures("small_tasks")
def test_the_number_of_threads_does_not_change_the_files(tmp_path: Path) -> None:
    corpus = stories(200)
    for threads in (1, 3):
        write_shards(corpus, ByteTokenizer(), tmp_path / str(threads), tokens_per_shard=2_000, num_threads=threads)

    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_the_held_out_share_is_chosen_by_the_text(tmp_path: Path) -> None:
    corpus = stories(2000)
    tokenizer = ByteTokenizer()

    write_shards([*corpus, *corpus[:300]], tokenizer, tmp_path, validation_share=0.1)

    train, validation = TokenShards(tmp_path, tokenizer), TokenShards(tmp_path, tokenizer, "validation")
    texts = [{tuple(split.document(i).tolist()) for i in range(len(split))} for split in (train, validation)]
    assert not texts[0] & texts[1], "a copy of a held-out text is held out too"
    assert len(train) + len(validation) == 2300
    assert 0.07 < len(validation) / 2300 < 0.13


@pytest.mark.parametrize("count", [0, 1, 30, 99])
@pytest.mark.usefixtures("small_tasks")
def test_an_interrupted_run_goes_on_to_the_same_files(tmp_path: Path, count: int) -> None:
    corpus = stories(100)
    arguments = {"tokens_per_shard": 700, "validation_share": 0.2, "num_threads": 1}
    undisturbed = write_shards(corpus, ByteTokenizer(), tmp_path / "undisturbed", **arguments)
    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted_after(corpus, count), ByteTokenizer(), tmp_path / "interrupted", **arguments)

    resumed = write_shards(corpus, ByteTokenizer(), tmp_path / "interrupted", **arguments)

    assert resumed == undisturbed
    assert content(tmp_path / "interrupted") == content(tmp_path / "undisturbed")


def test_a_run_killed_outright_goes_on_to_the_same_files(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from byte_tokenizer import ByteTokenizer
from camelid.data import shard_writer
from corpora import stories

shard_writer.TASK_LENGTH = 1
def texts():
    yield from stories(100)[:70]
    print("now", flush=True)
    sys.stdin.read()
shard_writer.write_shards(texts(), ByteTokenizer(), Path(sys.argv[1]), tokens_per_shard=500, num_threads=1)
"""
    paths = os.pathsep.join(["src", "tests", "tests/data"])
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        child.kill()
    num_finished = len(read_manifest(tmp_path / "killed").train)

    resumed = write_shards(stories(100), ByteTokenizer(), tmp_path / "killed", tokens_per_shard=500)
    undisturbed = write_shards(stories(100), ByteTokenizer(), tmp_path / "undisturbed", tokens_per_shard=500)

    assert 0 < num_finished < len(resumed.train)
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")
    assert resumed == undisturbed


@pytest.mark.usefixtures("small_tasks")
def test_finished_shards_are_not_tokenized_again(tmp_path: Path) -> None:
    class Counting(ByteTokenizer):
        num_encoded = 0

        def encode(self, text: str, **framing: bool) -> list[int]:
            self.num_encoded += 1
            return super().encode(text, **framing)

    tokenizer = Counting()
    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted_after(stories(100), 60), tokenizer, tmp_path, tokens_per_shard=500, num_threads=1)
    finished = sum(shard.num_documents for shard in read_manifest(tmp_path).train)
    tokenizer.num_encoded = 0

    write_shards(stories(100), tokenizer, tmp_path, tokens_per_shard=500, num_threads=1)

    assert finished > 30
    assert tokenizer.num_encoded == 100 - finished


def test_what_a_kill_left_behind_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".train-00000.tokens.abc.partial").write_bytes(b"half")
    (tmp_path / "train-00000.tokens").write_bytes(b"a shard that the manifest never listed")

    write_shards(["a"], ByteTokenizer(), tmp_path)

    assert sorted(content(tmp_path)) == ["manifest.json", "train-00000.documents", "train-00000.tokens"]
    TokenShards(tmp_path, ByteTokenizer()).verify()


@pytest.mark.parametrize("change", ["edited", "shorter", "reordered"])
def test_going_on_with_another_corpus_is_refused(tmp_path: Path, change: str) -> None:
    corpus = stories(50)
    write_shards(corpus, ByteTokenizer(), tmp_path, tokens_per_shard=200)
    other = {"edited": ["x" + corpus[0], *corpus[1:]], "shorter": corpus[:10], "reordered": corpus[::-1]}[change]

    with pytest.raises(FormatError, match="are not those of this corpus") as caught:
        write_shards(other, ByteTokenizer(), tmp_path, tokens_per_shard=200)

    assert "new folder" in str(caught.value.hint)


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    write_shards(["a"], ByteTokenizer(), tmp_path)

    with pytest.raises(FormatError, match="another tokens_per_shard"):
        write_shards(["a"], ByteTokenizer(), tmp_path, tokens_per_shard=7)
    with pytest.raises(FormatError, match="another vocabulary"):
        write_shards(["a"], OtherTokenizer(), tmp_path)


def test_a_corpus_may_grow(tmp_path: Path) -> None:
    write_shards(["a", "b"], ByteTokenizer(), tmp_path)

    write_shards(["a", "b", "c"], ByteTokenizer(), tmp_path)

    assert len(TokenShards(tmp_path, ByteTokenizer())) == 3


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no documents"):
        write_shards(["", ""], ByteTokenizer(), tmp_path)

    with pytest.raises(NotFoundError, match="no token shards"):
        TokenShards(tmp_path, ByteTokenizer())


@pytest.mark.parametrize("setting", [{"tokens_per_shard": 0}, {"validation_share": 1.0}, {"validation_share": -0.1}])
def test_impossible_settings_are_refused(tmp_path: Path, setting: dict[str, float]) -> None:
    with pytest.raises(RecipeError) as caught:
        write_shards(["a"], ByteTokenizer(), tmp_path, **setting)

    assert caught.value.where == next(iter(setting))


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    class Endless(ByteTokenizer):
        special = SpecialTokens()
        vocab_size = 256

    with pytest.raises(TokenizerError, match="no end-of-sequence token"):
        write_shards(["a"], Endless(), tmp_path)


def test_another_vocabulary_cannot_open_shards(tmp_path: Path) -> None:
    write_shards(["a"], ByteTokenizer(), tmp_path)

    with pytest.raises(TokenizerError, match="another vocabulary"):
        TokenShards(tmp_path, OtherTokenizer())


@pytest.mark.usefixtures("small_tasks")
def test_unfinished_shards_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted_after(stories(50), 40), ByteTokenizer(), tmp_path, tokens_per_shard=500)

    with pytest.raises(FormatError, match="not finished"):
        TokenShards(tmp_path, ByteTokenizer())


def test_a_split_without_documents_is_not_opened(tmp_path: Path) -> None:
    write_shards(["a"], ByteTokenizer(), tmp_path)

    with pytest.raises(NotFoundError, match="no validation documents") as caught:
        TokenShards(tmp_path, ByteTokenizer(), "validation")

    assert "validation_share" in str(caught.value.hint)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ["train-00000.tokens", "train-00000.documents"])
@pytest.mark.parametrize("damage", [_cut, _lose])
def test_opening_notices_files_of_the_wrong_size(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    shards_of(["some text"], tmp_path)
    damage(tmp_path / name)

    with pytest.raises((FormatError, NotFoundError)) as caught:
        TokenShards(tmp_path, ByteTokenizer())

    assert name in str(caught.value.where)


@pytest.mark.parametrize("name", ["train-00000.tokens", "train-00000.documents"])
def test_verifying_notices_a_flipped_bit(tmp_path: Path, name: str) -> None:
    shards_of(["some text", "more"], tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    shards = TokenShards(tmp_path, ByteTokenizer())

    with pytest.raises(FormatError, match="not what the manifest says") as caught:
        shards.verify()

    assert name in str(caught.value.where)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"version": 2}, "version"),
        ({"surprise": 1}, "surprise"),
        ({"vocabulary": "short"}, "vocabulary"),
        ({"train": [{"name": "../../etc/passwd"}]}, "train.0.name"),
    ],
)
def test_a_manifest_with_anything_unexpected_is_refused(tmp_path: Path, change: dict[str, object], key: str) -> None:
    shards_of(["a"], tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(FormatError, match=key):
        read_manifest(tmp_path)


def test_a_manifest_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    shards_of(["a"], tmp_path)
    _cut(tmp_path / "manifest.json")
    _cut(tmp_path / "manifest.json")

    with pytest.raises(FormatError, match="no manifest"):
        read_manifest(tmp_path)


def test_the_fingerprint_tells_content_not_place(tmp_path: Path) -> None:
    one, copy = shards_of(["a", "b"], tmp_path / "one"), shards_of(["a", "b"], tmp_path / "copy")
    other = shards_of(["a", "c"], tmp_path / "other")

    assert one.fingerprint == copy.fingerprint != other.fingerprint
    assert isinstance(one.manifest, Manifest)
