"""Requests for some stories of `texts/stories.jsonl.zst`, so that cria can be asked for one.

    python scripts/texts/story_requests.py texts/stories.jsonl.zst texts/requests.jsonl.zst

A request names one or two things of the story that answers it. Stories that were cut off by the length of the context
are cut back to their last sentence.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

import zstandard
from questions import NOUNS

FORMS_OF_ONE = (
    "Tell me a story about {a}.",
    "Please tell me a story with {a} in it.",
    "Can you tell a story about {a}?",
    "I want to hear a story about {a}.",
)
FORMS_OF_TWO = (
    "Tell me a story about {a} and {b}.",
    "Please tell me a story with {a} and {b} in it.",
    "Can you tell a story about {a} and {b}?",
    "I want to hear a story about {a} and {b}.",
)
PLAIN = ("Tell me a story.", "Please tell me a story.", "Do you know a story?", "Can you tell me a bedtime story?")

NOT_THINGS = {"branch", "day", "evening", "morning", "night", "rain", "sun", "sky", "moon", "fire", "watch", "water"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--requests", type=int, default=16_000, help="how many of the stories are asked for")
    arguments = parser.parse_args()

    packed = zstandard.ZstdDecompressor().stream_reader(arguments.stories.read_bytes()).read()
    lines = []
    stories = list(enumerate(packed.decode().splitlines()))
    for number, line in random.Random("requests").sample(stories, min(arguments.requests, len(stories))):
        story = whole_sentences(json.loads(line)["text"])
        chance = random.Random(f"requests/{number}")
        messages = [{"role": "user", "content": request(story, chance)}, {"role": "assistant", "content": story}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    arguments.output.write_bytes(zstandard.ZstdCompressor(level=19).compress("".join(lines).encode()))
    print(f"{len(lines)} requests, {arguments.output.stat().st_size / 1e6:.2f} MB packed")


def whole_sentences(story: str) -> str:
    """The story up to its last sentence that has an end."""
    end = re.search(r"(.*[.!?]\"?)", story, flags=re.DOTALL)
    return end[1] if end else story


def request(story: str, chance: random.Random) -> str:
    """What somebody could have said to be told this story."""
    words = Counter(re.findall(r"[a-z]+", story.lower()))
    things = sorted((noun for noun in NOUNS if words[noun] and noun not in NOT_THINGS), key=lambda noun: -words[noun])
    if not things or chance.random() < 0.1:
        return chance.choice(PLAIN)
    if len(things) == 1 or chance.random() < 0.5:
        return chance.choice(FORMS_OF_ONE).format(a=_a(things[0]))
    return chance.choice(FORMS_OF_TWO).format(a=_a(things[0]), b=_a(things[1]))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


if __name__ == "__main__":
    main()
