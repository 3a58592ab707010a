"""Each rule has a document that it keeps and one, like it but for one thing, that it drops."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import prose

from camelid.data.document import Document
from camelid.data.quality import C4, GopherQuality, GopherRepetition
from camelid.data.steps import Dropped, StepRecipe

GOOD = prose(1, num_words=200)
SENTENCE = "The river runs past the old village. "


def judged(recipe: StepRecipe, text: str) -> str:
    """The rule that drops the text, or the text that stays."""
    step = recipe.build()
    assert callable(step)
    result = step(Document(text, "id", "file"))
    return result.rule if isinstance(result, Dropped) else result.text


@pytest.mark.parametrize(
    ("rule", "settings", "keeps", "drops"),
    [
        ("min_words", {"min_words": 7}, "be to of and that have with", "be to of and that have"),
        ("max_words", {"max_words": 210}, GOOD, prose(1, num_words=230)),
        ("min_mean_word_length", {}, GOOD, "a to of b c to do it be to " * 10),
        ("max_mean_word_length", {}, GOOD, "the constitutional interdepartmental misunderstandings of " * 12),
        ("max_symbols_per_word", {}, GOOD + " #" * 15, GOOD + " #" * 25),
        ("max_symbols_per_word", {}, GOOD + "..." * 15, GOOD + "…" * 25),
        ("max_bullet_lines", {}, f"{GOOD}\n- {GOOD}", "\n".join(f"- {SENTENCE}" for _ in range(20))),
        ("max_ellipsis_lines", {}, f"{GOOD}\n{GOOD}...", f"{GOOD[:300]}...\n" * 2),
        ("min_alphabetic_words", {}, GOOD + " 1234" * 45, GOOD + " 1234" * 60),
        ("min_stop_words", {}, GOOD, "rivers running past villages into valleys " * 10 + "the"),
    ],
)
def test_gopher_quality(rule: str, settings: dict[str, int], keeps: str, drops: str) -> None:
    recipe = GopherQuality.model_validate(settings)
    if rule != "min_words":
        recipe = recipe.model_copy(update={"min_words": 5})
    assert judged(recipe, keeps) == keeps
    assert judged(recipe, drops) == rule


LINES = [prose(seed, num_words=8) for seed in range(20)]
PARAGRAPHS = "\n\n".join(LINES)


@pytest.mark.parametrize(
    ("rule", "keeps", "drops"),
    [
        ("max_duplicate_lines", PARAGRAPHS + "\nshort" * 7, PARAGRAPHS + "\nshort" * 12),
        ("max_duplicate_line_characters", PARAGRAPHS, "\n".join(LINES + LINES[:6])),
        ("max_duplicate_paragraphs", PARAGRAPHS, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n\nm\n\nm\n\nm"),
        (
            "max_duplicate_paragraph_characters",
            PARAGRAPHS,
            "\n\n".join(["\n".join([*LINES[:3], "x"]), "\n".join([*LINES[:3], "x"]), "y", "z"]),
        ),
        ("max_top_ngram_characters", GOOD, GOOD + " wonderful adventure" * 40),
        ("max_duplicate_ngram_characters", GOOD, " ".join(GOOD.split()[:60] + LINES[0].split() + GOOD.split()[:60])),
    ],
)
def test_gopher_repetition(rule: str, keeps: str, drops: str) -> None:
    # A rule looks at a document only if the ones before let it pass.
    before = {
        "max_duplicate_paragraphs": {},
        "max_duplicate_paragraph_characters": {"max_duplicate_lines": 1.0, "max_duplicate_line_characters": 1.0},
    }.get(rule, {})
    recipe = GopherRepetition.model_validate(before)
    assert judged(recipe, keeps) == keeps
    assert judged(recipe, drops) == rule


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), min_size=2, max_size=40), st.integers(2, 6))
def test_ngram_shares_are_what_counting_by_hand_gives(words: list[str], n: int) -> None:
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    characters = sum(map(len, words))
    covered = {i + k for i, ngram in enumerate(ngrams) if ngram in ngrams[:i] for k in range(n)}
    duplicate = sum(len(words[i]) for i in covered) / characters
    counts = Counter(ngrams)
    most = max(counts.values(), default=0)
    top = max((most * len("".join(g)) for g, c in counts.items() if c == most > 1), default=0) / characters

    off = {"max_duplicate_lines": 1.0, "max_duplicate_line_characters": 1.0}
    for share, name, first in ((top, "max_top_ngram_characters", 2), (duplicate, "max_duplicate_ngram_characters", 5)):
        if not 0 < share < 1 or n < first:
            continue
        # Every n-gram length but n is let pass.
        for limit, drops in ((share + 1e-9, False), (share - 1e-9, True)):
            limits = [1.0] * (n - first) + [limit]
            others = {"max_top_ngram_characters": (), "max_duplicate_ngram_characters": (), name: tuple(limits)}
            recipe = GopherRepetition.model_validate({**off, **others})
            assert (judged(recipe, " ".join(words)) == name) is drops


SENTENCES = SENTENCE * 3


@pytest.mark.parametrize(
    ("rule", "settings", "keeps", "drops"),
    [
        ("min_sentences", {}, SENTENCES.strip(), (SENTENCE * 2).strip()),
        ("drop_documents_with", {}, SENTENCES.strip(), SENTENCES + "Lorem ipsum dolor sit amet."),
        ("drop_documents_with", {}, SENTENCES.strip(), SENTENCES + "The code { is } here today."),
        ("banned_words", {"banned_words": ("rude",)}, SENTENCES + "It is a crude but good one.", SENTENCES + "Rude."),
    ],
)
def test_c4_documents(rule: str, settings: dict[str, object], keeps: str, drops: str) -> None:
    recipe = C4.model_validate(settings)
    assert judged(recipe, keeps) == keeps
    assert judged(recipe, drops) == rule


@pytest.mark.parametrize(
    "line",
    [
        "Home | About | Contact | Imprint | Search",
        "Too short a line.",
        "The text of this line goes on...",
        "Please switch on Javascript to see this page.",
        "By reading on you accept the use of cookies.",
    ],
)
def test_c4_takes_out_lines_that_are_no_sentences(line: str) -> None:
    text = f"{SENTENCE.strip()}\n{line}\n{(SENTENCE * 2).strip()}"
    assert judged(C4(), text) == f"{SENTENCE.strip()}\n{(SENTENCE * 2).strip()}"


def test_c4_takes_out_citation_marks() -> None:
    assert judged(C4(), SENTENCES + "It is old[12] and wide[citation needed] here.").endswith(
        "It is old and wide here."
    )
    assert "[12]" in judged(C4(remove_citation_marks=False), SENTENCES + "It is an old[12] one.")


def test_other_languages_set_their_own_marks_and_words() -> None:
    german = "Der Fluss und die Stadt liegen unter dem alten Berg; "
    assert judged(GopherQuality(min_words=5, stop_words=("der", "und", "die")), german) == german
    assert judged(C4(end_marks=(), min_sentences=0), german) == german
