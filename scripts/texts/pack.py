"""What `stories.py` and `dialogues.py` drew, sorted, without repetitions and packed.

    python scripts/texts/pack.py stories runs/stories-*.jsonl texts/stories.jsonl.zst
    python scripts/texts/pack.py dialogues runs/dialogues-*.jsonl texts/dialogues.jsonl.zst

Of the answers, those are kept that speak of what they were asked about and do not repeat themselves.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import zstandard

LONGEST_REPEAT = 4
"""Words in a row that an answer may not say twice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("stories", "dialogues"))
    parser.add_argument("drawn", type=Path, nargs="+")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()

    drawn = [json.loads(line) for path in arguments.drawn for line in path.read_text(encoding="utf-8").splitlines()]
    rows = stories(drawn) if arguments.kind == "stories" else dialogues(drawn)
    lines = dict.fromkeys(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = "".join(lines).encode()
    arguments.output.write_bytes(zstandard.ZstdCompressor(level=22).compress(content))
    packed = arguments.output.stat().st_size
    print(f"{len(lines)} of {len(drawn)} rows, {len(content) / 1e6:.1f} MB, {packed / 1e6:.1f} MB packed")


def stories(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of their numbers."""
    return [{"text": story["text"]} for story in sorted(drawn, key=lambda story: story["number"])]


def dialogues(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of what was asked."""
    kept = [row for row in drawn if answers_well(row["topic"], row["messages"][1]["content"])]
    return sorted(kept, key=lambda row: (row["topic"], row["messages"][0]["content"]))


def answers_well(topic: str, answer: str) -> bool:
    words = re.findall(r"[a-z']+", answer.lower())
    runs = [tuple(words[at : at + LONGEST_REPEAT]) for at in range(len(words) - LONGEST_REPEAT + 1)]
    if len(set(runs)) < len(runs):
        return False
    stem = topic.lower().split()[-1][:-1]  # "a pony" and "ponies" share "pon"
    return topic in ("feelings", "small talk") or any(word.startswith(stem) for word in words)


if __name__ == "__main__":
    main()
