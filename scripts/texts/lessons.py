"""What cria is taught in conversation: a part of every kind of conversation, `texts/lessons.jsonl.zst`.

python scripts/texts/lessons.py texts
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import zstandard

TAKEN = {"requests": 1200, "countries": 4869, "questions": 4500, "dialogues": 3000, "chats": 1000}
"""Some 800,000 tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    chance = random.Random("lessons")
    lessons: list[str] = []
    for name, number in TAKEN.items():
        packed = (arguments.folder / f"{name}.jsonl.zst").read_bytes()
        lines = zstandard.ZstdDecompressor().stream_reader(packed).read().decode().splitlines(keepends=True)
        lessons += chance.sample(lines, number)
    chance.shuffle(lessons)
    content = "".join(lessons).encode()
    (arguments.folder / "lessons.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    print(f"{len(lessons)} conversations, {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
