"""`async for` over replies, and texts as vectors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from camelid.base.errors import CamelidError, ContextLengthError, SamplingError
from camelid.llm import LLM

SAMPLING = {"max_tokens": 15, "temperature": 1.0, "seed": 5, "ignore_eos": True}


async def text_of(llm: LLM, prompt: str, **changes: Any) -> str:
    return "".join([chunk.text async for chunk in llm.astream(prompt, **{**SAMPLING, **changes})])


def test_streams_of_many_tasks_are_the_replies(tiny_llm: LLM) -> None:
    prompts = ["ab", "cd", "efg", "h"]

    async def together() -> list[str]:
        return await asyncio.gather(*(text_of(tiny_llm, prompt) for prompt in prompts))

    assert asyncio.run(together()) == [tiny_llm.generate(prompt, **SAMPLING).text for prompt in prompts]
    assert not tiny_llm.engine.has_unfinished


@pytest.mark.parametrize("turns", [1, 2, 3, 10])
def test_a_cancelled_task_and_a_closed_stream_leave_nothing(tiny_llm: LLM, turns: int) -> None:
    async def cancel_one() -> str:
        endless = asyncio.create_task(text_of(tiny_llm, "ab", max_tokens=150))
        other = asyncio.create_task(text_of(tiny_llm, "cd"))
        for _ in range(turns):
            await asyncio.sleep(0)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        stream = tiny_llm.astream("ef", max_tokens=100, ignore_eos=True)
        await anext(stream)
        await stream.aclose()
        return await other

    assert asyncio.run(cancel_one()) == tiny_llm.generate("cd", **SAMPLING).text
    assert tiny_llm._shared.is_idle
    assert not tiny_llm.engine.has_unfinished


def test_an_async_streams_errors_are_raised_where_it_is_read(tiny_llm: LLM) -> None:
    async def first() -> None:
        await anext(tiny_llm.astream("ab", temperature=-1))

    with pytest.raises(SamplingError):
        asyncio.run(first())


def test_texts_become_vectors_of_length_one(tiny_llm: LLM) -> None:
    vectors = tiny_llm.embed(["a text", "another", "a text"])
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
    assert torch.equal(tiny_llm.embed("another"), vectors[1])
    assert torch.equal(tiny_llm.embed(tiny_llm.encode_prompt("another")), vectors[1])
    assert tiny_llm.embed([]).shape == (0, 32)


def test_pooling_is_over_the_tokens_or_the_last(tiny_llm: LLM) -> None:
    states = tiny_llm.engine.hidden_states(tiny_llm.encode_prompt("abc"))
    assert states.shape == (4, 32)
    torch.testing.assert_close(tiny_llm.embed("abc"), torch.nn.functional.normalize(states.mean(0), dim=0))
    last = tiny_llm.embed("abc", pooling="last")
    torch.testing.assert_close(last, torch.nn.functional.normalize(states[-1], dim=0))
    with pytest.raises(CamelidError, match="pooling is 'mean' or 'last'"):
        tiny_llm.embed("abc", pooling="max")  # type: ignore[call-overload]
    with pytest.raises(ContextLengthError):
        tiny_llm.embed("a" * 200)
