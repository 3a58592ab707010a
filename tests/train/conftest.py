"""A Llama and batches small enough to train in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import TinyBatches, settings, tiny_model

from camelid.train.settings import TrainSettings


@pytest.fixture
def make_trainer(tmp_path: Path):
    """Builds a trainer in the test's run folder from changes to the tiny run's settings."""
    from camelid.train.trainer import Trainer

    def make(batches: TinyBatches | None = None, *, folder: str = "run", tied: bool = True, **changes) -> Trainer:
        run_settings = TrainSettings.model_validate({**settings().model_dump(), **changes})
        return Trainer(tiny_model(tied=tied), batches or TinyBatches(), run_settings, tmp_path / folder)

    return make
