"""One spelling for one text: Unicode form, line ends, control characters, spaces at line ends."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Literal

from camelid.data.steps import Dropped, StepRecipe

if TYPE_CHECKING:
    from camelid.data.document import Document

# CR LF, CR, next line, line separator and paragraph separator (Unicode, UAX 14, class BK and its kin); vertical tab and
# form feed part lines and pages.
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters besides tab and line feed, surrogates, byte-order marks inside a text, noncharacters.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff\ufdd0-\ufdef]")
_SPACE_BEFORE_LINE_END = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")


class Normalise(StepRecipe):
    """Unicode normalisation; drops a document of which nothing is left."""

    step: Literal["normalise"] = "normalise"
    form: Literal["NFC", "NFKC", "none"] = "NFC"
    """NFC keeps what is written; NFKC also rewrites ligatures, wide letters and superscripts (Unicode, UAX 15)."""

    def build(self) -> Normaliser:
        """The filter."""
        return Normaliser(self)


class Normaliser:
    """The filter of `Normalise`."""

    def __init__(self, settings: Normalise) -> None:
        self.form = settings.form

    def __call__(self, document: Document) -> Document | Dropped:
        """The document in its normal spelling."""
        text = normalise(document.text, self.form)
        return document.with_text(text) if text else Dropped("empty", "nothing but spaces and control characters")


def normalise(text: str, form: Literal["NFC", "NFKC", "none"] = "NFC") -> str:
    """The text in its normal spelling; doing it twice changes nothing more."""
    text = _LINE_END.sub("\n", text)
    # Before the Unicode form: an accent may have been kept from its letter by a control character.
    text = _UNWANTED.sub("", text)
    if form != "none":
        text = unicodedata.normalize(form, text)
    text = _SPACE_BEFORE_LINE_END.sub("", text)
    return _BLANK_LINES.sub("\n\n\n", text).strip()
