from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def camelid_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for models, and no settings of the machine's own that could lead outside."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("CAMELID_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def without_fairscale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for Meta's model-parallel library on one process: its layers are then the plain ones."""

    class Linear(torch.nn.Linear):
        def __init__(self, inputs: int, outputs: int, bias: bool = True, **_: Any) -> None:
            super().__init__(inputs, outputs, bias=bias)

    class Embedding(torch.nn.Embedding):
        def __init__(self, rows: int, columns: int, **_: Any) -> None:
            super().__init__(rows, columns)

    parts = {name: ModuleType(name) for name in ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel")}
    initialize = ModuleType("fairscale.nn.model_parallel.initialize")
    initialize.get_model_parallel_world_size = lambda: 1  # type: ignore[attr-defined]
    initialize.get_model_parallel_rank = lambda: 0  # type: ignore[attr-defined]
    layers = ModuleType("fairscale.nn.model_parallel.layers")
    layers.ColumnParallelLinear = layers.RowParallelLinear = Linear  # type: ignore[attr-defined]
    layers.VocabParallelEmbedding = Embedding  # type: ignore[attr-defined]
    parts["fairscale.nn.model_parallel"].initialize = initialize  # type: ignore[attr-defined]
    for module in (*parts.values(), initialize, layers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
