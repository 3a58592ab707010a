from __future__ import annotations

from pathlib import Path

import pytest
from toy_stages import TOYS

from camelid.pipeline.kind import STAGES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a text to read; toys are kinds of stages."""
    monkeypatch.chdir(tmp_path)
    for name, target in TOYS.items():
        monkeypatch.setitem(STAGES, name, target)
    (tmp_path / "in.txt").write_text("llama\n")
    return tmp_path
