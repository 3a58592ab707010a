"""Trains the tiny run in forked children that get killed, and again undisturbed. Started by test_resume as a script.

    python killed_run.py FOLDER --kills 20 --kills-in-save 8 --seed 0

Prints JSON: how many children were killed, how many of them inside a save, and whether both runs ended alike. The
parent imports everything and computes nothing, so that a child starts in milliseconds and inherits no thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from tiny_run import TinyBatches, settings, tiny_model

from camelid.base import files
from camelid.train.checkpointing import CheckpointFolder
from camelid.train.metrics import read_metrics
from camelid.train.trainer import Trainer

STEPS = 40


def train(folder: Path, mark: Path) -> None:
    """The whole run; `mark` exists while a checkpoint is being written."""
    torch.set_num_threads(1)
    save = CheckpointFolder.save

    def marked(*args, **kwargs):
        mark.touch()
        path = save(*args, **kwargs)
        mark.unlink()
        return path

    CheckpointFolder.save = marked
    with contextlib.redirect_stderr(io.StringIO()):
        Trainer(tiny_model(), TinyBatches(), settings(steps=STEPS, checkpoint_every=3), folder).run()


def fork(folder: Path, mark: Path, die_at_fsync: int | None = None) -> int:
    """Start a child; it kills itself at its n-th fsync, all of which happen inside a save, if told to."""
    pid = os.fork()
    if pid:
        return pid
    if die_at_fsync is not None:
        left = die_at_fsync
        fsync = os.fsync

        def deadly(descriptor: int) -> None:
            nonlocal left
            left -= mark.exists()
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        files.os.fsync = deadly
    try:
        train(folder, mark)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def wait(pid: int) -> bool:
    """Whether the child was killed; False: it came to the end."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a child failed")
    return os.WIFSIGNALED(status)


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step-{STEPS:08d}" / "model" / "model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--kills-in-save", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    mark = arguments.folder / "saving"

    start = time.monotonic()
    assert not wait(fork(arguments.folder / "undisturbed", mark))
    duration = time.monotonic() - start

    disturbed = arguments.folder / "disturbed"
    planned = [True] * arguments.kills_in_save + [False] * (arguments.kills - arguments.kills_in_save)
    rng.shuffle(planned)
    killed = in_save = 0
    for inside in planned:
        # Late enough for progress on average, early enough for the run not to end before all kills are done.
        pid = fork(disturbed, mark, rng.randint(1, 18) if inside else None)
        if not inside:
            time.sleep(rng.uniform(0, 2 * duration / arguments.kills))
            os.kill(pid, signal.SIGKILL)
        killed += wait(pid)
        in_save += mark.exists()
        mark.unlink(missing_ok=True)
    assert not wait(fork(disturbed, mark))

    curves = [
        [(metrics.step, metrics.loss) for metrics in read_metrics(folder / "metrics.jsonl")]
        for folder in (arguments.folder / "undisturbed", disturbed)
    ]
    result = {
        "killed": killed,
        "in_save": in_save,
        "same_weights": weights(arguments.folder / "undisturbed") == weights(disturbed),
        "same_losses": curves[0] == curves[1] and len(curves[0]) == STEPS,
        "left_over": [path.name for path in (disturbed / "checkpoints").iterdir() if path.name.startswith(".")],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
