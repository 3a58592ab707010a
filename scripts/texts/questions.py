"""Questions with answers that follow from the question: `texts/questions.jsonl` to learn from, and a set to be asked.

    python scripts/texts/questions.py texts

A question is either learned from or held out, never both: its hash decides, so that no held-out wording, number pair or
word for a kind of question is ever seen in training. The learned ones are conversations in OpenAI's message schema; the
held-out ones are question, answer and kind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable

NOUNS = """
apple arm aunt baby ball banana barn basket bath bear bed bee bell bench berry bike bird biscuit blanket boat bone
book boot bottle bowl box boy branch bread brick bridge brother brush bucket bug bun bus bush butter button cake camel
candle cap captain car card carrot castle cat chair cheese cherry chest chicken child church circle city clock cloth
cloud clown coat coin cook cottage cow crab crow crown cup curtain daisy dance daughter day desk dish doctor dog doll
donkey door dragon drawer dream dress drum duck ear egg engine face fairy family farm farmer father feather fence
field finger fire flag floor flower fly forest fork fox friend frog fruit garden gate ghost giant gift girl glass
glove goat grape grass guest guitar hall hammer hand hat hen hill hole horn horse hospital house insect island jacket
jar jewel judge juice jungle kettle key king kite kitchen kitten knee knot ladder lady lake lamb lamp leg lemon letter
library lion lizard log machine map market mask meadow mill mirror monkey moon morning mother mountain mouth nail neck
needle nest night nose nurse nut oak ocean orange oven owl page paint palace paper park parrot party path peach pen
pencil penny picture pie pig pillow pilot pirate plant plate pocket poem pond pony potato princess prize puddle puppet
puppy queen question rabbit rain ring river road robin robot rock roof room rooster rope rose rug sail sailor salad
sandwich school seat seed shell ship shirt shoe shop shoulder sister skirt sky snail snake soldier song soup spider
spoon squirrel stable star station stick stone storm story stove street string summer sun swan sweater table tail
tailor teacher tent tiger toad tower town toy track train tree truck trumpet tunnel turkey turtle uncle umbrella
valley village violin voice wagon wall watch water whale wheel whistle window wing winter wizard worm yard
""".split()

HELD_OUT_SHARE = 0.1

PER_KIND = 3000
"""Questions drawn of each kind, before repeated ones are dropped."""


def larger(chance: random.Random) -> tuple[str, str]:
    a, b = chance.sample(range(100), 2)
    return f"Which is larger, {a} or {b}?", f"{max(a, b)}"


def after(chance: random.Random) -> tuple[str, str]:
    number = chance.randrange(999)
    return f"Which number comes after {number}?", f"{number + 1}"


def plus(chance: random.Random) -> tuple[str, str]:
    a, b = chance.randrange(51), chance.randrange(50)
    return f"What is {a} plus {b}?", f"{a + b}"


def first_word(chance: random.Random) -> tuple[str, str]:
    words = chance.sample(NOUNS, 3)
    return f"Which word comes first: {', '.join(words)}?", words[0]


def last_word(chance: random.Random) -> tuple[str, str]:
    words = chance.sample(NOUNS, 3)
    return f"Which word comes last: {', '.join(words)}?", words[-1]


def twice(chance: random.Random) -> tuple[str, str]:
    a, b = chance.sample(NOUNS, 2)
    return f"Say {a} {b} twice.", f"{a} {b} {a} {b}"


def swap(chance: random.Random) -> tuple[str, str]:
    a, b = chance.sample(NOUNS, 2)
    return f"Swap these words: {a} {b}", f"{b} {a}"


def owner(chance: random.Random) -> tuple[str, str]:
    names = ["Tom", "Alice", "Lily", "Ben", "Dorothy", "Jim", "Mary", "Peter", "Amy", "Jack"]
    (one, other), (a, b) = chance.sample(names, 2), chance.sample(NOUNS, 2)
    asked, owned = chance.choice([(one, a), (other, b)])
    return f"{one} has {_a(a)} and {other} has {_a(b)}. What does {asked} have?", _a(owned)


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    kind.__name__: kind for kind in (larger, after, plus, first_word, last_word, twice, swap, owner)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held-out", type=int, default=50, help="questions of each kind that are asked")
    arguments = parser.parse_args()

    learned: list[str] = []
    held_out: list[str] = []
    for kind, ask in KINDS.items():
        chance = random.Random(f"questions/{kind}")
        drawn = dict(ask(chance) for _ in range(PER_KIND))
        asked = [question for question in drawn if is_held_out(question)]
        learned += [conversation(q, drawn[q]) for q in drawn if not is_held_out(q)]
        held_out += [
            json.dumps({"kind": kind, "question": question, "answer": drawn[question]})
            for question in asked[: arguments.held_out]
        ]
    random.Random("questions").shuffle(learned)
    content = ("\n".join(learned) + "\n").encode()
    (arguments.folder / "questions.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    (arguments.folder / "questions-held-out.jsonl").write_text("\n".join(held_out) + "\n", encoding="utf-8")
    print(f"{len(learned)} questions to learn from, {len(held_out)} held out")


def conversation(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def is_held_out(question: str) -> bool:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


if __name__ == "__main__":
    main()
