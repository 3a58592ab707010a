"""Adapters in the engine: several in one batch, each reply as if its adapter were merged; prefixes never mix."""

from __future__ import annotations

import copy

import pytest
import torch

from camelid.base.errors import EngineError, NotFoundError
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats
from camelid.llm import LLM
from camelid.model.llama import Llama
from camelid.model.lora import LoraAdapter, LoraConfig, Merged

PROMPT = [256, *b"hello there, hello there"]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


def new_adapter(model: Llama, seed: int) -> LoraAdapter:
    adapter = LoraAdapter.new(model, LoraConfig(rank=4), seed=seed)
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=0.3, generator=torch.Generator().manual_seed(seed))
    return adapter


@pytest.fixture
def llama(tiny_llm: LLM) -> Llama:
    assert isinstance(tiny_llm.model, Llama)
    return tiny_llm.model.double()


@pytest.mark.parametrize("decode_graphs", [False, True])
def test_each_reply_is_that_of_the_model_with_its_adapter_merged(llama: Llama, decode_graphs: bool) -> None:
    adapters = {name: new_adapter(llama, seed) for name, seed in (("a", 1), ("b", 2))}
    expected = {}
    for name in (None, "a", "b"):
        model = copy.deepcopy(llama)
        if name:
            Merged(model, adapters[name])
        [completion] = Engine(model).generate([PROMPT], PARAMS)
        expected[name] = completion.token_ids
    assert len({tuple(reply) for reply in expected.values()}) == 3

    log: list[StepStats] = []
    engine = Engine(llama, block_size=4, decode_graphs=decode_graphs, on_step=log.append)
    for name, adapter in adapters.items():
        engine.add_adapter(name, adapter)
    order = [None, "a", "b", "a", None]
    each = [SamplingParams(max_tokens=12, ignore_eos=True, adapter=name) for name in order]
    for _ in range(2):  # the second time from what the cache has kept
        completions = engine.generate([PROMPT] * 5, each)
        assert [c.token_ids for c in completions] == [expected[name] for name in order]
    assert max(stats.num_sequences for stats in log) == 5
    assert log[-1].num_reused_tokens > 0


def test_an_adapter_of_the_same_name_uses_nothing_of_the_old_one(llama: Llama) -> None:
    engine = Engine(llama, block_size=4)
    params = SamplingParams(max_tokens=12, ignore_eos=True, adapter="a")
    replies = []
    for seed in (1, 2, 1):
        engine.add_adapter("a", new_adapter(llama, seed))
        replies.append(engine.generate([PROMPT], params)[0].token_ids)
        engine.remove_adapter("a")
    assert replies[0] == replies[2] != replies[1]


def test_an_adapter_in_use_stays_and_an_unknown_one_is_refused(llama: Llama) -> None:
    engine = Engine(llama)
    engine.add_adapter("a", new_adapter(llama, 1))
    request = engine.add(PROMPT, SamplingParams(adapter="a"))
    with pytest.raises(EngineError, match="1 unfinished requests use the adapter 'a'"):
        engine.remove_adapter("a")
    engine.cancel(request)
    engine.remove_adapter("a")
    with pytest.raises(NotFoundError, match="no adapter named 'a'"):
        engine.add(PROMPT, SamplingParams(adapter="a"))
    assert engine.adapter_names == []
