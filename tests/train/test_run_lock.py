from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from camelid.base.errors import RecipeError, ResourceError
from camelid.train.run_lock import RunLock


def test_a_second_trainer_is_kept_out_while_the_first_one_lives(make_trainer, tmp_path: Path) -> None:
    first = make_trainer()
    with pytest.raises(ResourceError, match="another process is training in this run folder") as caught:
        make_trainer()
    assert str(tmp_path / "run") in str(caught.value)
    assert caught.value.hint
    first.run()
    assert make_trainer().step == 12


def test_a_run_holds_its_folder_to_the_end(make_trainer) -> None:
    trainer = make_trainer()
    refused = []

    def intrude(metrics) -> None:
        with pytest.raises(ResourceError):
            make_trainer()
        refused.append(metrics.step)

    trainer._on_step = intrude
    trainer.run()
    assert refused == list(range(1, 13))


def test_a_run_that_fails_lets_go(make_trainer) -> None:
    trainer = make_trainer()
    trainer._on_step = lambda metrics: (_ for _ in ()).throw(KeyError)
    with pytest.raises(KeyError):
        trainer.run()
    make_trainer().run()
    with pytest.raises(RecipeError) as caught:
        make_trainer(steps=13)
    assert caught.tb is not None
    assert make_trainer().step == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_dies_with_a_killed_process(tmp_path: Path) -> None:
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = RunLock(tmp_path)
        os.write(told, b"1")
        signal.pause()
        os._exit(bool(lock))
    assert os.read(ready, 1) == b"1"
    with pytest.raises(ResourceError):
        RunLock(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    RunLock(tmp_path).close()
    os.close(ready)
    os.close(told)
