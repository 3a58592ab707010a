"""How fast camelid encodes: against the `tokenizers` library on the same vocabulary, and against bare tiktoken.

    python benchmarks/tokenizer_encode.py [--tokenizer PATH] [--text PATH] [--megabytes 4] [--rounds 5]

One thread. The three take turns, and the best round of each counts. The text is Python's own language reference
(`pydoc_data.topics`, English), unless a file is named; the vocabulary is GPT-2's from the test fixtures, unless one is
named. Every byte-level BPE can be measured, since all three must give the same ids, which is checked first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "tokenizers" / "vectors" / "gpt-2.gguf.gz"
PIECE = 20_000
"""Characters of one document: about what one web page has."""


def english(megabytes: float) -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics.values())
    wanted = int(megabytes * 1e6)
    return (text * (wanted // len(text) + 1))[:wanted]


def seconds(encode: Callable[[str], list[int]], documents: list[str]) -> float:
    start = time.perf_counter()
    for document in documents:
        encode(document)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a folder or file that camelid opens")
    parser.add_argument("--text", type=Path, help="a UTF-8 text file")
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import tokenizers

    from camelid.tokenizer import load_tokenizer
    from camelid.tokenizer.tiktoken_bpe import TiktokenBPE

    text = arguments.text.read_text(encoding="utf-8") if arguments.text else english(arguments.megabytes)
    documents = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    size = sum(len(document.encode()) for document in documents) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.tokenizer
        if path is None:
            path = folder / "gpt-2.gguf"
            path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
        ours = load_tokenizer(path)
        if not isinstance(ours, TiktokenBPE):
            sys.exit("this vocabulary does not run on tiktoken")
        ours.save(folder / "saved")
        peer = tokenizers.Tokenizer.from_file(str(folder / "saved" / "tokenizer.json"))

    runs: dict[str, Callable[[str], list[int]]] = {
        "camelid": ours.encode,
        "tokenizers": lambda document: peer.encode(document, add_special_tokens=False).ids,
        "tiktoken": ours._encoding.encode_ordinary,
    }
    expected = [ours.encode(document) for document in documents]
    for run, encode in runs.items():
        if [encode(document) for document in documents] != expected:
            sys.exit(f"{run} gives other ids")

    best = dict.fromkeys(runs, float("inf"))
    for _ in range(arguments.rounds):
        for run, encode in runs.items():
            best[run] = min(best[run], seconds(encode, documents))
    speed = {run: size / best[run] for run in runs}

    print(f"{size:.1f} MB in {len(documents)} documents, {sum(map(len, expected)):,} tokens, one thread")
    print(f"{'':12}{'MB/s':>8}{'× tokenizers':>15}{'of tiktoken':>14}")
    for run, rate in speed.items():
        print(f"{run:12}{rate:8.2f}{rate / speed['tokenizers']:15.2f}{rate / speed['tiktoken']:14.0%}")
    result = {
        "name": "tokenizer_encode_mb_per_s",
        "ours": round(speed["camelid"], 3),
        "peer": round(speed["tokenizers"], 3),
        "ratio": round(speed["camelid"] / speed["tokenizers"], 3),
        "limit": round(speed["tiktoken"], 3),
        "share_of_limit": round(speed["camelid"] / speed["tiktoken"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
