"""One text of a corpus, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin; always encodable as UTF-8."""

    text: str
    id: str
    """`file:number`, with the line, row or piece counted from 1; unique in a corpus."""
    source: str
    """The file it was read from."""

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    def with_text(self, text: str) -> Document:
        """The same document with another text."""
        return self if text == self.text else replace(self, text=text)
