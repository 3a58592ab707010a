from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from camelid.base.errors import RecipeError
from camelid.data.document import Document
from camelid.data.language import Language, identify
from camelid.data.steps import Dropped

pytest.importorskip("py3langid", reason="language identification needs py3langid")

ARTICLES = Path(__file__).parent.parent / "fixtures" / "udhr" / "article1.json.gz"

# The fixture's codes → ISO 639-1.
LANGUAGES = {
    "eng": "en", "deu_1996": "de", "spa": "es", "ita": "it", "por_PT": "pt", "nld": "nl", "swe": "sv", "dan": "da",
    "fin": "fi", "pol": "pl", "ces": "cs", "slk": "sk", "hun": "hu", "ron_2006": "ro", "bul": "bg", "rus": "ru",
    "ukr": "uk", "ell_monotonic": "el", "tur": "tr", "arb": "ar", "heb": "he", "hin": "hi", "ben": "bn", "tam": "ta",
    "tel": "te", "tha": "th", "vie": "vi", "jpn": "ja", "kor": "ko", "cmn_hans": "zh", "cat": "ca", "lit": "lt",
    "lav": "lv", "est": "et", "slv": "sl", "swh": "sw", "fra": "fr", "isl": "is", "cym": "cy", "eus": "eu",
}  # fmt: skip


def test_the_declarations_first_article_is_named_rightly_in_the_most_written_languages() -> None:
    articles = json.loads(gzip.decompress(ARTICLES.read_bytes()))
    wrong = {
        code: identify(articles[code])[0] for code, name in LANGUAGES.items() if identify(articles[code])[0] != name
    }
    assert not wrong


def test_documents_in_other_languages_are_dropped() -> None:
    judge = Language(languages=("en", "fr")).build()
    english = Document("The river runs past the village and under the old bridge.", "1", "file")
    german = Document("Der Fluss fließt am Dorf vorbei und unter der alten Brücke hindurch.", "2", "file")

    assert judge(english) is english
    dropped = judge(german)
    assert isinstance(dropped, Dropped)
    assert dropped.rule == "other_language"
    assert "'de'" in dropped.detail


def test_what_is_no_language_is_uncertain() -> None:
    judge = Language(languages=("en",), min_confidence=0.99).build()
    dropped = judge(Document("the 7", "1", "file"))
    assert isinstance(dropped, Dropped)


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(RecipeError, match="unknown language 'english'"):
        Language(languages=("english",)).build()
