"""Ids that llama.cpp gives under every name of a pre-tokenizer, for tests/fixtures/tokenizers/vectors/pre.json.gz.

    python scripts/pre_tokenizer_vectors.py

The first merges of GPT-2's vocabulary stand for all: a file of them is written for each name in `GGUF_PRE`, and read by
llama.cpp and by camelid. Names with the same ids share an entry. The 532 translations of article 1 of the Declaration
of Human Rights are compared, too, and what differs is printed. llama.cpp comes as `benchmarks/llama_cpp_peer.py` says.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER / "benchmarks"))

from llama_cpp_peer import LlamaCpp  # noqa: E402

from camelid.base.gguf_header import read_gguf_header  # noqa: E402
from camelid.checkpoint.gguf_container import header_bytes  # noqa: E402
from camelid.tokenizer.gguf_pre import GGUF_PRE  # noqa: E402
from camelid.tokenizer.gguf_vocab import from_gguf_metadata  # noqa: E402

FIXTURES = FOLDER / "tests" / "fixtures"
VECTORS = FIXTURES / "tokenizers" / "vectors"

TEXTS = [
    "It's 12345 o'clock, DON'T you'LL we'Re",
    "deepseek 한국어 测试 1234567 ひらがな カタカナ ㄅㄆ ㄱㄴ",
    "a  b   c\t\td\n\n\ne  \n f" + " " * 37,
    "foo(bar)[0]!=~baz; x+=1 // ok /\n/\n",
    "Ünïcödé ÀÉÎ straße e\u0301te\u0301",
    "３４５ ٣٤٥ ½² 1000000",
    "<sentinel:12>IMGIMGABCZ",
    "a b c d e. f g",
    "¿Qué? «Sí». “x” ‘y’…",
]
"""What the shared texts lack: capitals in contractions, other scripts' digits, runs of blanks, markup."""


NUM_MERGES = 5000


def small_vocabulary(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """GPT-2's bytes and first merges as the metadata of a GGUF file."""
    size = 256 + NUM_MERGES
    kept = {"tokens": size, "token_type": size, "merges": NUM_MERGES}
    keys = {f"tokenizer.ggml.{key}": metadata[f"tokenizer.ggml.{key}"][:count] for key, count in kept.items()}
    return {"general.architecture": "gpt2", "tokenizer.ggml.model": "gpt2", **keys}


def main() -> None:
    texts = (VECTORS / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:46] + TEXTS
    declaration = json.loads(gzip.decompress((FIXTURES / "udhr" / "article1.json.gz").read_bytes())).values()
    entries: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "vocabulary.gguf")
        path.write_bytes(gzip.decompress((VECTORS / "gpt-2.gguf.gz").read_bytes()))
        metadata = small_vocabulary(read_gguf_header(path).metadata)
        for name in GGUF_PRE:
            metadata["tokenizer.ggml.pre"] = name
            path.write_bytes(header_bytes(metadata, []))
            tokenizer = from_gguf_metadata(metadata)
            with closing(LlamaCpp(path, vocabulary_only=True)) as peer:
                ids = [peer.encode(text) for text in texts]
                differ = sum(tokenizer.encode(text) != peer.encode(text) for text in declaration)
            wrong = [text for text, expected in zip(texts, ids, strict=True) if tokenizer.encode(text) != expected]
            print(f"{name:20}{len(wrong)} of {len(texts)} texts differ, {differ} of {len(declaration)} translations")
            entries.setdefault(json.dumps(ids), []).append(name)
    content = {
        "num_merges": NUM_MERGES,
        "texts": texts,
        "entries": [{"names": names, "ids": json.loads(ids)} for ids, names in entries.items()],
    }
    data = json.dumps(content, ensure_ascii=False).encode()
    (VECTORS / "pre.json.gz").write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
