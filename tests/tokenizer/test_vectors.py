"""Ids that others computed: llama.cpp's vocabulary tests, and the golden ids of Llama 2, 3 and 4."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint.gguf_container import header_bytes
from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.gguf_pre import GGUF_PRE
from camelid.tokenizer.gguf_vocab import from_gguf_metadata
from camelid.tokenizer.gguf_vocab_write import gguf_vocabulary

FIXTURES = Path(__file__).parent.parent / "fixtures"
VECTORS = FIXTURES / "tokenizers" / "vectors"

GOLDEN = {
    "llama2": {
        "This is a test sentence.": "910 338 263 1243 10541 29889",
        "Hello world": "15043 3186",
        "  two  spaces": "259 1023 29871 8162",
        "2023": "29871 29906 29900 29906 29941",
        "café ☺ 🦙": "274 28059 29871 31171 29871 243 162 169 156",
        "a\nb\tc": "263 13 29890 12 29883",
        "[INST] Hi [/INST]": "518 25580 29962 6324 518 29914 25580 29962",
        "A": "319",
        "B": "350",
        "C": "315",
        "D": "360",
    },
    "llama3": {
        "This is a test sentence.": "2028 374 264 1296 11914 13",
        "Hello world": "9906 1917",
        "  two  spaces": "220 1403 220 12908",
        "2023": "2366 18",
        "café ☺ 🦙": "936 59958 26182 118 11410 99 247",
        "a\nb\tc": "64 198 65 1470",
        "system": "9125",
        "user": "882",
        "assistant": "78191",
        "ipython": "23799 4690",
        "\n\n": "271",
        " A": "362",
        " B": "426",
        " C": "356",
        " D": "423",
    },
    "llama4": {
        "This is a test sentence.": "3231 373 262 1600 17705 26",
        "Hello world": "19873 3817",
        "  two  spaces": "220 1472 220 15174",
        "2023": "837 31",
        "café ☺ 🦙": "1349 53389 49729 131 9522 112 247",
        "a\nb\tc": "77 198 78 3375",
        "system": "15651",
        "user": "1556",
        "assistant": "140680",
        "ipython": "607 6934",
        "\n\n": "368",
        " A": "352",
        " B": "410",
        " C": "354",
        " D": "401",
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    expected = {text: list(map(int, ids.split())) for text, ids in GOLDEN[name].items()}
    assert {text: tokenizer.encode(text) for text in expected} == expected


@pytest.mark.parametrize(
    ("vectors", "name"),
    [("llama-spm", "llama2"), ("llama-bpe", "llama3")],
)
def test_agrees_with_the_vectors_of_llama_cpp(vectors: str, name: str, request: pytest.FixtureRequest) -> None:
    check_vectors(request.getfixturevalue(name), vectors)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "qwen2", "starcoder"])
def test_vocabularies_in_gguf_files_agree_with_their_vectors(name: str, gguf_folder: Path) -> None:
    check_vectors(load_tokenizer(gguf_folder / f"{name}.gguf"), name)


def test_llama_3s_vocabulary_agrees_with_its_vectors_after_a_trip_through_gguf(
    llama3: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "llama-bpe.gguf"
    path.write_bytes(header_bytes(gguf_vocabulary(llama3, llama3.vocab_size), []))
    assert read_gguf_header(path).metadata["tokenizer.ggml.pre"] == "llama-bpe"
    check_vectors(load_tokenizer(path), "llama-bpe")


def check_vectors(tokenizer: Tokenizer, vectors: str) -> None:
    texts = (VECTORS / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [list(map(int, line.split())) for line in (VECTORS / f"{vectors}.out").read_text().splitlines()]
    assert len(expected) == 46
    assert [tokenizer.encode(text) for text in texts[: len(expected)]] == expected


def test_round_trips_five_hundred_languages(any_tokenizer: Tokenizer) -> None:
    texts = json.loads(gzip.decompress((FIXTURES / "udhr" / "article1.json.gz").read_bytes()))
    assert len(texts) > 500
    assert {code: any_tokenizer.decode(any_tokenizer.encode(text)) for code, text in texts.items()} == texts


def test_control_tokens_of_the_llama_3_releases(llama3: Tokenizer, llama3_file: Path, tmp_path: Path) -> None:
    assert llama3.vocab_size == 128_256
    assert llama3.special.ids["<|image|>"] == 128_011
    assert llama3.special.ids["<|reserved_special_token_245|>"] == 128_255
    assert (llama3.special.bos, llama3.special.eos, llama3.special.pad) == (128_000, 128_001, 128_004)

    (tmp_path / "tokenizer.model").symlink_to(llama3_file)
    (tmp_path / "params.json").write_text('{"dim": 4096, "rope_theta": 500000.0}')
    first = load_tokenizer(tmp_path)
    assert first.special.ids["<|reserved_special_token_4|>"] == 128_008
    assert first.special.ids["<|reserved_special_token_250|>"] == 128_255
    assert first.special.ids["<|eot_id|>"] == 128_009
    assert "<|eom_id|>" not in first.special.ids
    assert first.special.pad is None

    (tmp_path / "params.json").write_text('{"dim": 4096, "use_scaled_rope": true}')
    assert load_tokenizer(tmp_path).special == llama3.special


def test_control_tokens_of_llama_4(llama4: Tokenizer) -> None:
    names = {
        "<|begin_of_text|>": 200_000,
        "<|header_start|>": 200_005,
        "<|eot|>": 200_008,
        "<|python_start|>": 200_016,
        "<|finetune_right_pad|>": 200_018,
        "<|text_post_train_reserved_special_token_68|>": 200_079,
        "<|image_start|>": 200_080,
        "<|tile_x_separator|>": 200_084,
        "<|image|>": 200_090,
        "<|patch|>": 200_092,
        "<|reasoning_thinking_end|>": 201_143,
    }
    assert {name: llama4.special.ids[name] for name in names} == names
    assert llama4.vocab_size == 202_048


PRE = json.loads(gzip.decompress((VECTORS / "pre.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def first_merges(gguf_folder: Path) -> dict[str, Any]:
    """GPT-2's bytes and first merges, as `scripts/pre_tokenizer_vectors.py` takes them."""
    whole = read_gguf_header(gguf_folder / "gpt-2.gguf").metadata
    kept = {"tokens": 256 + PRE["num_merges"], "token_type": 256 + PRE["num_merges"], "merges": PRE["num_merges"]}
    keys = {f"tokenizer.ggml.{key}": whole[f"tokenizer.ggml.{key}"][:count] for key, count in kept.items()}
    return {"tokenizer.ggml.model": "gpt2", **keys}


@pytest.mark.parametrize("entry", PRE["entries"], ids=lambda entry: entry["names"][0])
def test_every_name_of_a_pre_tokenizer_cuts_as_llama_cpp_does(entry: dict[str, Any], first_merges: Any) -> None:
    for name in entry["names"]:
        tokenizer = from_gguf_metadata(
            first_merges | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}
        )
        assert [tokenizer.encode(text) for text in PRE["texts"]] == entry["ids"], name


def test_the_vectors_know_every_name() -> None:
    assert {name for entry in PRE["entries"] for name in entry["names"]} == GGUF_PRE.keys()


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-v3", "falcon", "viking", "tekken", "qwen35"])
def test_a_cut_in_steps_survives_a_folder_and_a_gguf_file(name: str, first_merges: Any, tmp_path: Path) -> None:
    tokenizer = from_gguf_metadata(first_merges | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False})
    tokenizer.save(tmp_path)
    again = from_gguf_metadata(gguf_vocabulary(load_tokenizer(tmp_path), tokenizer.vocab_size))
    assert [again.encode(text) for text in PRE["texts"]] == [tokenizer.encode(text) for text in PRE["texts"]]
