from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prose import prose, with_words_changed

import camelid.data.clean as clean
from camelid.base.errors import FormatError, NotFoundError, RecipeError, ResourceError
from camelid.base.recipe import load_recipe
from camelid.data.clean import CleanRecipe, kept_documents, prepare
from camelid.data.clean_folder import open_folder
from camelid.data.dedup import ExactDedup, NearDedup
from camelid.data.document import Document
from camelid.data.language import Language
from camelid.data.normalise import Normalise
from camelid.data.quality import C4, GopherQuality
from camelid.data.report import CleaningReport
from camelid.data.steps import Filter, StepRecipe

STEPS = (Normalise(), GopherQuality(min_words=20), C4(), ExactDedup(), NearDedup())


def write_corpus(folder: Path, texts: list[str], name: str = "corpus.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / name


def recipe_for(tmp_path: Path, **changes: object) -> CleanRecipe:
    return CleanRecipe.model_validate(
        {"sources": (str(tmp_path / "raw"),), "output": tmp_path / "clean", "steps": STEPS, **changes}
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every result of cleaning: all files but the index, whose pages may lie in any order."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "index.sqlite")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files, with duplicates inside them and from one to another."""
    texts = [prose(seed) for seed in range(60)]
    near = [with_words_changed(text, 0.01, seed=0) for text in texts[:9]]
    write_corpus(tmp_path / "raw", [*texts[:30], "too short", texts[3]], "a.jsonl")
    write_corpus(tmp_path / "raw", [*near, *texts[30:50], texts[0] + "\r\nHome | About"], "b.jsonl")
    write_corpus(tmp_path / "raw", [*texts[50:], texts[31], "\x00"], "c.jsonl")
    return tmp_path


def test_the_pipeline_keeps_first_copies_and_reports_every_drop(corpus: Path) -> None:
    report = prepare(recipe_for(corpus))

    kept = list(kept_documents(corpus / "clean"))
    assert [document.text for document in kept] == [prose(seed) for seed in range(60)]
    assert kept[0].id == f"{corpus}/raw/a.jsonl:1"
    assert report.num_documents == 74
    assert report.num_kept == 60
    assert report.num_bytes_kept == sum(document.num_bytes for document in kept)
    assert report.num_dropped("gopher_quality", "min_words") == 1
    assert report.num_dropped("normalise", "empty") == 1
    # Text 3 and text 31 again, and text 0 once C4 has taken out the line of links.
    assert report.num_dropped("exact_dedup", "duplicate") == 3
    assert report.num_dropped("near_dedup", "near_duplicate") == 9
    assert sum(file.num_kept for file in report.files) == 60


def test_the_report_shows_examples_and_is_written_for_people_and_machines(corpus: Path) -> None:
    report = prepare(recipe_for(corpus))

    (near,) = next(step for step in report.steps if step.step == "near_dedup").rules
    assert len(near.examples) == 3
    assert near.examples[0].id == f"{corpus}/raw/b.jsonl:1"
    assert near.examples[0].detail == f"repeats {corpus}/raw/a.jsonl:1"
    text = (corpus / "clean" / "report.txt").read_text()
    assert "near_duplicate: dropped 9 documents" in text
    assert "too short" in text
    assert CleaningReport.model_validate_json((corpus / "clean" / "report.json").read_text()) == report


def test_bytes_add_up(corpus: Path) -> None:
    report = prepare(recipe_for(corpus))
    taken_out = sum(step.num_bytes_taken_out for step in report.steps)
    dropped = sum(rule.num_bytes for step in report.steps for rule in step.rules)
    assert report.num_bytes_kept + dropped <= report.num_bytes
    # A document may be changed and dropped later: then the change counts, and its bytes as it reached the last step.
    assert report.num_bytes - dropped - taken_out == report.num_bytes_kept


def test_the_result_does_not_depend_on_the_number_of_processes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "CHUNK_BYTES", 2000)
    results = []
    for processes in (1, 3):
        output = corpus / f"clean{processes}"
        prepare(recipe_for(corpus, output=output, processes=processes))
        results.append(contents(output))
    assert results[0] == results[1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.integers(0, 8).map(lambda seed: prose(seed, 40)) | st.text(max_size=30), min_size=1),
    chunk=st.integers(1, 3000),
)
def test_the_result_does_not_depend_on_chunks(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    write_corpus(folder / "raw", texts)
    results = []
    for size in (chunk, 1 << 18):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clean, "CHUNK_BYTES", size)
            prepare(recipe_for(folder, output=folder / str(size)))
        results.append(contents(folder / str(size)))
    assert results[0] == results[1]


@pytest.mark.parametrize("num_read_before", [0, 10, 40, 65, 73])
def test_a_killed_run_goes_on_to_the_same_result(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, num_read_before: int
) -> None:
    undisturbed = recipe_for(corpus, output=corpus / "undisturbed")
    report = prepare(undisturbed)
    settle, calls = clean._settle, iter(range(num_read_before))

    def killed(*args: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return settle(*args)

    with monkeypatch.context() as patch:
        patch.setattr(clean, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe_for(corpus))
    read: list[Path] = []
    monkeypatch.setattr(clean, "documents_of", lambda file, o: read.append(file.path) or documents_of(file, o))

    assert prepare(recipe_for(corpus)) == report
    assert contents(corpus / "clean") == contents(corpus / "undisturbed")
    done = sum(end <= num_read_before for end in (32, 62, 74))
    assert len(read) == 3 - done


documents_of = clean.documents_of


def test_files_added_later_are_cleaned_against_what_is_there(corpus: Path) -> None:
    (corpus / "raw" / "c.jsonl").rename(corpus / "later.jsonl")
    prepare(recipe_for(corpus))
    (corpus / "later.jsonl").rename(corpus / "raw" / "c.jsonl")
    assert prepare(recipe_for(corpus)).num_kept == 60


@pytest.mark.parametrize("change", ["recipe", "contents", "order", "kept"])
def test_a_folder_of_another_recipe_or_corpus_is_refused(corpus: Path, change: str) -> None:
    prepare(recipe_for(corpus))
    recipe = recipe_for(corpus, steps=STEPS[:-1]) if change == "recipe" else recipe_for(corpus)
    if change == "contents":
        write_corpus(corpus / "raw", ["another"], "a.jsonl")
    if change == "order":
        write_corpus(corpus / "raw", ["before all others"], "0.jsonl")
    if change == "kept":
        next((corpus / "clean" / "documents").iterdir()).unlink()
    with pytest.raises((RecipeError, FormatError)) as caught:
        prepare(recipe)
    assert "output folder" in str(caught.value.hint)


def test_what_a_killed_process_left_is_removed(corpus: Path) -> None:
    left = corpus / "clean" / "documents" / ".000000.jsonl.zst.abc.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    prepare(recipe_for(corpus))
    assert not left.exists()


def test_two_runs_in_one_folder_are_refused(corpus: Path) -> None:
    with open_folder(corpus / "clean"), pytest.raises(ResourceError, match="another process"):
        prepare(recipe_for(corpus))


def test_a_damaged_index_is_named(corpus: Path) -> None:
    prepare(recipe_for(corpus))
    (corpus / "clean" / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(FormatError, match="damaged"):
        prepare(recipe_for(corpus))


def test_a_corpus_without_a_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(NotFoundError):
        prepare(recipe_for(tmp_path))
    (tmp_path / "raw" / "empty.txt").write_text("\n")
    with pytest.raises(FormatError, match="empty"):
        prepare(recipe_for(tmp_path))


def test_a_malformed_row_stops_and_the_files_before_it_are_done(corpus: Path) -> None:
    good = (corpus / "raw" / "c.jsonl").read_text()
    (corpus / "raw" / "c.jsonl").write_text(good.replace("{", "[", 1))
    with pytest.raises(FormatError, match="malformed row") as caught:
        prepare(recipe_for(corpus))
    assert caught.value.where == f"{corpus}/raw/c.jsonl:1"
    (corpus / "raw" / "c.jsonl").write_text(good)
    assert prepare(recipe_for(corpus)).num_kept == 60


def test_a_step_that_cannot_be_built_leaves_the_folder_free(corpus: Path) -> None:
    pytest.importorskip("py3langid", reason="language identification needs py3langid")
    with pytest.raises(RecipeError, match="unknown language"):
        prepare(recipe_for(corpus, steps=(NearDedup(), Language(languages=("klingon",)))))
    assert prepare(recipe_for(corpus)).num_kept == 60


class Dying(StepRecipe):
    """A step that takes its process with it."""

    step: str = "dying"

    def build(self) -> Filter:
        return die


def die(document: Document) -> Document:
    os._exit(9)


def test_a_process_that_dies_is_an_error_with_a_hint(corpus: Path) -> None:
    with pytest.raises(ResourceError, match="died") as caught:
        prepare(recipe_for(corpus, steps=(Dying(),), processes=2))
    assert "processes" in str(caught.value.hint)


def load(tmp_path: Path, toml: str) -> CleanRecipe:
    path = tmp_path / "clean.toml"
    path.write_text('sources = ["raw"]\noutput = "clean"\n' + toml)
    return load_recipe(CleanRecipe, path)


def test_a_recipe_declares_the_steps_in_toml(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, '[[steps]]\nstep = "c4"\nend_marks = ["。"]\n[[steps]]\nstep = "near_dedup"\nthreshold = 0.8'
    )
    assert recipe.steps == (C4(end_marks=("。",)), NearDedup(threshold=0.8))
    assert [step.step for step in load(tmp_path, "").steps] == ["normalise", "exact_dedup", "near_dedup"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[[steps]]\nstep = "gopher_quality"\nmin_word = 3', "min_words"),
        ('[[steps]]\nstep = "gopher_quality"\nmin_words = -3', "the step 'gopher_quality'"),
        ('[[steps]]\nstep = "near_dedup"\nthreshold = 1.5', "threshold"),
        ('[[steps]]\nstep = "near-dedup"', "near_dedup"),
        ("[[steps]]\nthreshold = 0.5", 'step = "…"'),
        ("[[steps]]\nstep = 'decontaminate'", "against"),
        ("processes = 0", "processes"),
    ],
)
def test_an_impossible_recipe_is_refused_with_a_hint(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises((RecipeError, NotFoundError)) as caught:
        load(tmp_path, toml)
    assert message in str(caught.value)


MEASURE = """
import sys
from pathlib import Path
from camelid.data import clean_folder
from camelid.data.clean import CleanRecipe, prepare
# A cache that both corpora fill: with the default one the small corpus' index would lie in memory as a whole.
clean_folder.INDEX_CACHE_KIB = 512
report = prepare(CleanRecipe(sources=(sys.argv[1],), output=Path(sys.argv[2]), processes=1))
status = Path("/proc/self/status").read_text()
print(report.num_kept, status.partition("VmHWM:")[2].split()[0])
"""


def test_a_step_that_is_no_table_is_refused() -> None:
    with pytest.raises(RecipeError, match="a cleaning step has no name"):
        load_recipe(CleanRecipe, None, ['sources=["a"]', "output=b", "steps=[3]"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says the peak of one program alone")
def test_peak_memory_is_the_same_for_ten_times_the_corpus(tmp_path: Path) -> None:
    kept, peaks = [], []
    for scale in (1, 10):
        path = write_corpus(tmp_path / f"raw{scale}", [prose(seed, num_words=150) for seed in range(1000 * scale)])
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / f"clean{scale}")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        kept.append(int(output[0]))
        peaks.append(int(output[1]))
    assert kept == [1000, 10000]
    assert peaks[1] < 1.05 * peaks[0], peaks
