"""What the engine is held to: a small real model and the plain loop over it."""

from __future__ import annotations

from functools import partial

import pytest
from tiny_engine_model import PlainLoop, TinyModel, new_tiny_model, run_plain_loop


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Not to be written to."""
    return new_tiny_model()


@pytest.fixture
def own_model() -> TinyModel:
    """For tests that change the weights."""
    return new_tiny_model()


@pytest.fixture(scope="session")
def plain_loop(tiny_model: TinyModel) -> PlainLoop:
    """`run_plain_loop` over the tiny model, unless told otherwise."""
    return partial(run_plain_loop, model=tiny_model)
