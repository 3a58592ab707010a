"""The books of `texts/books` and `texts/library`: public-domain classics, cut into passages, a file an author.

    python scripts/texts/books.py books.jsonl.gz texts

The library has the books that are not mostly for children.

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
NOT_FOR_CHILDREN = {"A Lady Of Quality", "Hospital Sketches", "The Abbot's Ghost: A Christmas Story"}
LEFT_OUT = {"Adventures of Huckleberry Finn", "The Adventure of the Six Napoleons"}
"""Full of a word that no model should learn to say; and what models are measured on."""

PASSAGE = 4000
"""Characters of a passage, at least: about a thousand tokens."""

SHORTEST = 400
"""The rest of a chapter that is shorter joins the passage before it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("texts", type=Path)
    arguments = parser.parse_args()

    shelves: dict[Path, list[str]] = {}
    with gzip.open(arguments.books, "rt", encoding="utf-8") as file:
        for book in map(json.loads, file):
            if book["title"] in LEFT_OUT:
                continue
            author = book["author"].split()[-1].lower()
            shelf = shelves.setdefault(arguments.texts / room(book) / f"{author}.jsonl.zst", [])
            for passage in passages(plain(book["text"])):
                entry = {"author": book["author"], "title": book["title"], "text": passage}
                shelf.append(json.dumps(entry, ensure_ascii=False) + "\n")
    for path, lines in shelves.items():
        content = "".join(lines).encode()
        packed = zstandard.ZstdCompressor(level=19).compress(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        print(f"{path}: {len(lines)} passages, {len(content) / 1e6:.1f} MB, {len(packed) / 1e6:.1f} MB packed")


def room(book: dict[str, str]) -> str:
    for_children = book["author"] in AUTHORS or book["title"] in TITLES
    return "books" if for_children and book["title"] not in NOT_FOR_CHILDREN else "library"


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
