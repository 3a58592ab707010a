"""Made-up English prose: sentences of common words, different for every seed."""

from __future__ import annotations

import random

WORDS = str.split(
    "the be to of and that have with in for on as at by from this they river mountain village morning window garden "
    "teacher letter bridge winter summer horse boat market child friend story music paper silver yellow quiet small "
    "old young early late walked carried found opened watched remembered built answered crossed followed gathered "
    "between under behind beside toward through slowly quickly often never always again together because while until "
    "bread water stone field forest house road night light voice hand heart world time year day work school city ship"
)


def prose(seed: int, num_words: int = 120) -> str:
    """Sentences of 8 to 14 words in paragraphs of 4, about `num_words` words together."""
    generator = random.Random(seed)
    sentences, count = [], 0
    while count < num_words:
        words = generator.choices(WORDS, k=generator.randint(8, 14))
        count += len(words)
        sentences.append(" ".join(words).capitalize() + ".")
    return "\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4))


def with_words_changed(text: str, share: float, seed: int) -> str:
    """The text with a share of its words replaced by words it does not have."""
    generator = random.Random(seed)
    words = text.split(" ")
    for place in generator.sample(range(len(words)), round(share * len(words))):
        words[place] = f"changed{generator.randrange(10**6)}"
    return " ".join(words)
