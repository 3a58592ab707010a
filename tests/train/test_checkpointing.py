from __future__ import annotations

import errno
import json
import logging
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny_run import TinyBatches, settings

from camelid.base.errors import FormatError, NotFoundError, RecipeError, ResourceError
from camelid.checkpoint import load_model, open_checkpoint
from camelid.train import checkpointing
from camelid.train.checkpointing import verify


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_and_the_milestones_are_kept(make_trainer) -> None:
    trainer = make_trainer(steps=12, checkpoint_every=2, milestone_every=4)
    trainer.run()
    assert names(trainer.checkpoints.folder) == [f"step-{n:08d}" for n in (4, 8, 10, 12)]


def test_the_model_folder_opens_like_any_other(make_trainer) -> None:
    trainer = make_trainer()
    result = trainer.run()
    with closing(open_checkpoint(result.checkpoint / "model")) as opened:
        model = load_model(opened)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True))


def test_a_checkpoint_holds_nothing_but_safetensors_and_json(make_trainer) -> None:
    path = make_trainer().run().checkpoint
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "optimizer.safetensors", "state.json", "model/config.json"]
)
def test_one_flipped_bit_is_noticed_and_the_checkpoint_before_it_taken(make_trainer, caplog, file: str) -> None:
    newest = make_trainer().run().checkpoint / file
    content = bytearray(newest.read_bytes())
    content[-2] ^= 1
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="camelid"):
        resumed = make_trainer()
    assert resumed.step == 8
    assert f"step-00000012: '{file}' is damaged" in caplog.text


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "optimizer.safetensors"])
def test_a_half_written_checkpoint_is_skipped(make_trainer, caplog, file: str) -> None:
    (make_trainer().run().checkpoint / file).unlink()
    with caplog.at_level(logging.WARNING, logger="camelid"):
        assert make_trainer().step == 8
    assert "skipping the checkpoint" in caplog.text


def test_a_damaged_checkpoint_gives_way_to_the_run_that_skipped_it(make_trainer) -> None:
    trainer = make_trainer()
    final = trainer.run().checkpoint
    expected = (final / "model" / "model.safetensors").read_bytes()
    (final / "state.json").write_text("{}")
    make_trainer().run()
    verify(final)
    assert (final / "model" / "model.safetensors").read_bytes() == expected


def test_a_run_without_one_sound_checkpoint_does_not_start_over(make_trainer) -> None:
    trainer = make_trainer()
    trainer.run()
    for path in trainer.checkpoints.folder.iterdir():
        (path / "manifest.json").write_text("[]")
    with pytest.raises(FormatError, match="no checkpoint of this run can be used: step-00000012"):
        make_trainer()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 13}, "settings.steps was 12 and is 13"),
        ({"optimizer": {"learning_rate": 0.5}}, "settings.optimizer.learning_rate"),
        ({"tied": False}, "model.tie_word_embeddings was True and is False"),
        ({"batches": TinyBatches(fingerprint="other")}, "data was 'tiny' and is 'other'"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(make_trainer, changes: dict, named: str) -> None:
    make_trainer().run()
    with pytest.raises(RecipeError, match="belongs to another run") as caught:
        make_trainer(**changes)
    assert named in str(caught.value)


def test_intervals_may_change_between_two_starts(make_trainer) -> None:
    make_trainer().run()
    assert make_trainer(checkpoint_every=5, log_every=1).step == 12


def test_a_full_disk_keeps_the_last_checkpoint(make_trainer, monkeypatch) -> None:
    write, calls = checkpointing.write_safetensors, 0

    def full(file, *args):
        nonlocal calls
        calls += 1
        if calls == 3:
            file.write(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, *args)

    monkeypatch.setattr(checkpointing, "write_safetensors", full)
    trainer = make_trainer()
    with pytest.raises(ResourceError, match="no space left"):
        trainer.run()
    assert names(trainer.checkpoints.folder) == ["step-00000004", "step-00000008"]
    assert make_trainer().step == 8
    assert make_trainer().run().finished


def test_too_little_space_is_noticed_before_writing(make_trainer, monkeypatch) -> None:
    def full(path: Path, num_bytes: int) -> None:
        raise ResourceError("not enough disk space")

    monkeypatch.setattr(checkpointing, "check_free_space", full)
    trainer = make_trainer()
    with pytest.raises(ResourceError, match="not enough"):
        trainer.run()
    assert not trainer.checkpoints.folder.exists()


def test_a_torn_line_of_metrics_is_dropped_on_resume(make_trainer) -> None:
    trainer = make_trainer()
    trainer._on_step = lambda metrics: (_ for _ in ()).throw(KeyError) if metrics.step == 6 else None
    with pytest.raises(KeyError):
        trainer.run()
    path = trainer.run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "lo')
    make_trainer().run()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 13))


def test_the_generator_goes_on_where_it_was(make_trainer) -> None:
    trainer = make_trainer(steps=settings().steps)
    trainer._on_step = lambda metrics: torch.rand(3)
    trainer.run()
    expected = torch.rand(4)
    torch.manual_seed(99)
    make_trainer()
    assert torch.equal(torch.rand(4), expected)


def test_a_manifest_that_names_too_little_proves_nothing(make_trainer) -> None:
    path = make_trainer().run().checkpoint
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": {}}))
    with pytest.raises(FormatError, match="does not name"):
        verify(path)
    (path / "manifest.json").unlink()
    with pytest.raises(NotFoundError):
        verify(path)
