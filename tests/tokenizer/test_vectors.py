"""Ids that others computed: llama.cpp's vocabulary tests, and the golden ids of Llama 2, 3 and 4."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from camelid.tokenizer import Tokenizer

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
    [("gpt-2", "gpt2"), ("llama-spm", "llama_spm"), ("llama-spm", "llama2"), ("llama-bpe", "llama3")],
)
def test_agrees_with_the_vectors_of_llama_cpp(vectors: str, name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    texts = (VECTORS / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [list(map(int, line.split())) for line in (VECTORS / f"{vectors}.out").read_text().splitlines()]
    assert [tokenizer.encode(text) for text in texts[: len(expected)]] == expected


def test_round_trips_five_hundred_languages(any_tokenizer: Tokenizer) -> None:
    texts = json.loads(gzip.decompress((FIXTURES / "udhr" / "article1.json.gz").read_bytes()))
    assert len(texts) > 500
    assert {code: any_tokenizer.decode(any_tokenizer.encode(text)) for code, text in texts.items()} == texts


def test_control_tokens_of_the_llama_3_releases(llama3: Tokenizer, llama3_file: Path, tmp_path: Path) -> None:
    from camelid.tokenizer import load_tokenizer

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
