from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_run.py"


def killed_run(folder: Path, *, kills: int, kills_in_save: int) -> dict:
    source = SCRIPT.parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{SCRIPT.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder), "--kills", str(kills), "--kills-in-save", str(kills_in_save)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kills", "kills_in_save"), [(4, 2), pytest.param(20, 8, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, kills: int, kills_in_save: int
) -> None:
    result = killed_run(tmp_path, kills=kills, kills_in_save=kills_in_save)
    assert result["killed"] >= kills - 1
    assert result["in_save"] >= kills_in_save - 1
    assert result["same_weights"]
    assert result["same_losses"]
    assert result["left_over"] == []
