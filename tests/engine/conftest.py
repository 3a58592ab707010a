"""What the engine is held to: a small real model and the plain loop over it."""

from __future__ import annotations

import pytest
import torch
from tiny_engine_model import PlainLoop, TinyModel, new_tiny_model

from camelid.engine.params import SamplingParams
from camelid.engine.sampling import sample
from camelid.engine.sequence import Sequence
from camelid.model.attention import PackedContext
from camelid.model.base import LanguageModel


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
    """Continue one prompt by running the whole sequence again for every token: no cache, no batch, no blocks."""

    @torch.inference_mode()
    def run(
        prompt: list[int], params: SamplingParams, *, stop_ids: tuple[int, ...] = (), model: LanguageModel = tiny_model
    ) -> list[int]:
        room = model.config.max_position_embeddings - len(prompt)
        row = Sequence(0, list(prompt), params, seed=params.seed or 0, stop_ids=frozenset(), max_length=10**9)
        ids = row.token_ids
        while len(ids) - len(prompt) < min(room, params.max_tokens or room):
            context = PackedContext([len(ids)])
            hidden = model(torch.tensor(ids), context.positions(), context)
            [token] = sample(model.logits(hidden[-1:]), [row])
            assert token is not None
            if token in {*stop_ids, *params.stop_token_ids}:
                break
            ids.append(token)
        return ids[len(prompt) :]

    return run
