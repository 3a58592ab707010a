from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import pytest
import zstandard
from small_pipeline import write_inputs
from test_recipe import TOY, load

from camelid.base.errors import CamelidError
from camelid.cli.main import main
from camelid.pipeline.dry_run import dry_run
from camelid.pipeline.estimate import corpus_bytes
from camelid.pipeline.run import run_pipeline


def test_a_dry_run_tells_what_is_to_be_done_and_writes_nothing(folder: Path) -> None:
    run_pipeline(load(TOY), Path("out"))
    before = sorted(folder.rglob("*"))
    found = dry_run(load(TOY, "stages.second.suffix=new"), Path("out"))
    assert [stage.estimate is None for stage in found.stages] == [True, False]
    assert found.seconds == 2
    lines = found.text().splitlines()
    assert re.fullmatch(r"first +copy +cached", lines[1])
    assert re.fullmatch(r"second +copy +7 +2s", lines[2])
    assert lines[-1] == "in all about 2s"
    assert sorted(folder.rglob("*")) == before


def test_a_stage_that_is_still_to_be_done_is_known_to_those_after_it(folder: Path) -> None:
    found = dry_run(load(TOY), Path("out"))
    assert [stage.estimate and stage.estimate.note for stage in found.stages] == ["", "after another"]
    assert not Path("out").exists()


def test_every_stage_of_a_whole_pipeline_is_estimated_before_any_has_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(folder)
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["camelid", "run", "small.toml", "--dry-run"])
    with pytest.raises(SystemExit, match="0"):
        main()
    head, *rows, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["stage", "kind", "tokens", "parameters", "FLOPs", "memory", "time"]
    kinds = {row.split()[0]: row.split() for row in rows}
    assert list(kinds) == ["tokenizer", "data", "base", "chat", "exam"]
    parameters = 340 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    for name in ("base", "chat", "exam"):
        assert f"{parameters:,}" in kinds[name]
    assert kinds["base"][2] == f"{8 * 4 * 32:,}", "8 steps of 4 rows of 32 tokens"
    assert "?" not in "".join(rows)
    assert total.startswith("in all about ")
    assert sorted(folder.rglob("*")) == before


def test_a_device_that_is_not_there_is_found_by_a_dry_run(folder: Path) -> None:
    write_inputs(folder)
    text = Path("small.toml").read_text()
    with pytest.raises(CamelidError, match=r"'abacus'(.|\n)*stages\.base"):
        dry_run(load(text, "stages.base.device=abacus"), Path("out"))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_compressed_corpus_counts_as_what_is_in_it(folder: Path, suffix: str) -> None:
    text = ("The llama sleeps near the river. " * 2000).encode()
    packed = {"": text, ".gz": gzip.compress(text), ".zst": zstandard.ZstdCompressor().compress(text)}[suffix]
    path = folder / f"corpus.txt{suffix}"
    path.write_bytes(packed)
    assert corpus_bytes([str(path)]) == pytest.approx(len(text), rel=0.01)
