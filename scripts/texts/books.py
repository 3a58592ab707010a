"""The books of `texts/books`: public-domain classics, cut into passages, a file an author.

    python scripts/texts/books.py books.jsonl.gz texts/books

The input has a book a line: author, title and text in Markdown (github.com/mlschmitt/classic-books-markdown, commit
9448827). Passages end between paragraphs, so that some can be held out of a book that others are learned from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORS = {
    "Lewis Carroll",
    "L. Frank Baum",
    "Louisa May Alcott",
    "Frances Hodgson Burnett",
    "Kenneth Grahame",
    "Oscar Wilde",
}
TITLES = {
    "Adventures of Huckleberry Finn",
    "Around the World in 80 Days",
    "Kidnapped",
    "The Adventure of the Blue Carbuncle",
    "The Adventure of the Speckled Band",
    "The Adventures of Tom Sawyer",
    "The Prince and the Pauper",
    "The Red-Headed League",
    "The Time Machine",
    "Treasure Island",
}
LEFT_OUT = {"A Lady Of Quality", "Hospital Sketches", "The Abbot's Ghost: A Christmas Story"}
"""Not for children, as the rest of the shelf is."""

PASSAGE = 4000
"""Characters of a passage, at least: about a thousand tokens."""

SHORTEST = 400
"""The rest of a chapter that is shorter joins the passage before it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()

    shelves: dict[str, list[str]] = {}
    with gzip.open(arguments.books, "rt", encoding="utf-8") as file:
        for book in map(json.loads, file):
            if (book["author"] in AUTHORS or book["title"] in TITLES) and book["title"] not in LEFT_OUT:
                shelf = shelves.setdefault(book["author"], [])
                for passage in passages(plain(book["text"])):
                    entry = {"author": book["author"], "title": book["title"], "text": passage}
                    shelf.append(json.dumps(entry, ensure_ascii=False) + "\n")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for author, lines in shelves.items():
        content = "".join(lines).encode()
        name = author.split()[-1].lower()
        packed = zstandard.ZstdCompressor(level=19).compress(content)
        (arguments.output / f"{name}.jsonl.zst").write_bytes(packed)
        print(f"{name}: {len(lines)} passages, {len(content) / 1e6:.1f} MB, {len(packed) / 1e6:.1f} MB packed")


def plain(markdown: str) -> str:
    """The text without Markdown's marks, one line a paragraph, straight quotes."""
    text = markdown.replace("\r\n", "\n").replace("“", '"').replace("”", '"').replace("’", "'").replace("‘", "'")
    text = re.sub(r"\[\^?[^\]\n]*\](\([^)\n]*\))?", "", text)
    text = re.sub(r"^\s*(#+|\*\s*\*\s*\*|-{3,}|>)\s*", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"(\*\*|__|(?<!\w)[*_](?=\w)|(?<=[\w.,;:!?'\"])[*_](?!\w)|\\)", "", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def passages(text: str) -> Iterator[str]:
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        if sum(map(len, held)) >= PASSAGE:
            yield "\n\n".join(held)
            held = []
        held.append(paragraph)
    if sum(map(len, held)) >= SHORTEST:
        yield "\n\n".join(held)


if __name__ == "__main__":
    main()
