"""What cria is taught in conversation, a part of every kind: `texts/lessons.jsonl.zst`, then `texts/drills.jsonl.zst`.

python scripts/texts/lessons.py texts
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import zstandard

TAKEN = {
    "lessons": {"requests": 1200, "countries": 4869, "questions": 4500, "dialogues": 3000, "chats": 1000},
    "drills": {"requests": 100, "countries": 1200, "questions": 6500, "dialogues": 300, "chats": 50},
}
"""Some 860,000 tokens, and then mostly questions whose answers follow from them, which take the most practice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    for name, taken in TAKEN.items():
        chance = random.Random(name)
        conversations: list[str] = []
        for source, number in taken.items():
            packed = (arguments.folder / f"{source}.jsonl.zst").read_bytes()
            lines = zstandard.ZstdDecompressor().stream_reader(packed).read().decode().splitlines(keepends=True)
            conversations += chance.sample(lines, number)
        chance.shuffle(conversations)
        content = "".join(conversations).encode()
        (arguments.folder / f"{name}.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
        print(f"{name}: {len(conversations)} conversations, {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
