"""`LLM`: text, token ids and conversations in; text, ids and a reason for ending out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import torch

from byte_tokenizer import ByteTokenizer
from camelid.base.errors import (
    CamelidError,
    ChatFormatError,
    ContextLengthError,
    EngineError,
    SamplingError,
    TokenizerError,
)
from camelid.engine.engine import Engine
from camelid.llm import LLM, check_tokenizer_fits

QUESTION = [{"role": "user", "content": "Why?"}]


def test_text_ids_and_messages_are_all_prompts(tiny_llm: LLM) -> None:
    assert tiny_llm.encode_prompt("ab") == [256, 97, 98]
    assert tiny_llm.encode_prompt([97, 98]) == [97, 98]
    assert tiny_llm.tokenizer.decode(tiny_llm.encode_prompt(QUESTION)) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_greedy_is_the_argmax_of_the_logits_at_every_step(tiny_llm: LLM) -> None:
    ids = [256, 97]
    reply = tiny_llm.generate(ids, max_tokens=20, ignore_eos=True)
    for token_id in reply.token_ids:
        assert int(tiny_llm.logits(ids)[-1].argmax()) == token_id
        ids.append(token_id)
    assert (len(reply.token_ids), reply.finish_reason, reply.num_prompt_tokens) == (20, "length", 2)
    assert reply.text == tiny_llm.tokenizer.decode(reply.token_ids, skip_special=True)


def test_a_batch_equals_its_prompts_one_by_one(tiny_llm: LLM) -> None:
    prompts = ["one", "two and more", "three"]
    sampling = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    assert tiny_llm.generate(prompts, **sampling) == [tiny_llm.generate(prompt, **sampling) for prompt in prompts]
    conversations = [QUESTION, [{"role": "user", "content": "How?"}]]
    assert [reply.num_prompt_tokens for reply in tiny_llm.generate(conversations, max_tokens=2)] == [
        len(tiny_llm.encode_prompt(conversation)) for conversation in conversations
    ]
    assert tiny_llm.generate([], max_tokens=2) == []


def test_a_stream_is_the_reply_in_pieces(tiny_llm: LLM) -> None:
    sampling = {"max_tokens": 30, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    reply = tiny_llm.generate("ab", **sampling)
    chunks = list(tiny_llm.stream("ab", **sampling))
    assert "".join(chunk.text for chunk in chunks) == reply.text
    assert [i for chunk in chunks for i in chunk.token_ids] == reply.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_streams_that_take_turns_lose_nothing(tiny_llm: LLM) -> None:
    sampling = {"max_tokens": 15, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    expected = [tiny_llm.generate(prompt, **sampling).text for prompt in ("ab", "cd")]
    streams = [tiny_llm.stream(prompt, **sampling) for prompt in ("ab", "cd")]
    texts = ["", ""]
    open_streams = {0, 1}
    while open_streams:
        for index in list(open_streams):
            chunk = next(streams[index], None)
            if chunk is None:
                open_streams.remove(index)
            else:
                texts[index] += chunk.text
    assert texts == expected


def test_closing_a_stream_ends_the_request(tiny_llm: LLM) -> None:
    stream = tiny_llm.stream("ab", max_tokens=100, ignore_eos=True)
    next(stream)
    stream.close()
    tiny_llm.engine.step()
    assert not tiny_llm.engine.has_unfinished


@pytest.mark.parametrize("first", [1, 2, 5])
def test_a_stop_text_ends_the_reply_and_is_not_part_of_it(tiny_llm: LLM, first: int) -> None:
    free = tiny_llm.generate("ab", max_tokens=40, ignore_eos=True)
    stop = free.text[first : first + 3]
    at = free.text.index(stop)
    reply = tiny_llm.generate("ab", max_tokens=40, ignore_eos=True, stop=["never this", stop])
    assert (reply.text, reply.finish_reason) == (free.text[:at], "stop")
    assert len(reply.token_ids) < 40
    streamed = [chunk.text for chunk in tiny_llm.stream("ab", max_tokens=40, ignore_eos=True, stop=stop)]
    assert "".join(streamed) == free.text[:at]


def test_text_that_only_starts_like_a_stop_text_is_given_out_in_the_end(tiny_llm: LLM) -> None:
    free = tiny_llm.generate("ab", max_tokens=10, ignore_eos=True)
    reply = tiny_llm.generate("ab", max_tokens=10, ignore_eos=True, stop=free.text[-2:] + "and more")
    assert (reply.text, reply.finish_reason) == (free.text, "length")


def test_the_reply_ends_with_the_context(tiny_llm: LLM) -> None:
    reply = tiny_llm.generate([97] * 150, ignore_eos=True)
    assert (len(reply.token_ids), reply.finish_reason) == (10, "length")


def test_end_tokens_come_from_tokenizer_chat_format_and_generation_config(
    tiny_llm: LLM, byte_tokenizer: ByteTokenizer
) -> None:
    assert tiny_llm.stop_ids == {256, 258}
    base = LLM(tiny_llm.model, byte_tokenizer, generation_config={"eos_token_id": [7, 9]})
    assert base.stop_ids == {7, 9, 256, 258}


def test_the_end_token_ends_the_reply_and_is_not_part_of_it(tiny_llm: LLM) -> None:
    free = tiny_llm.generate("ab", max_tokens=20, ignore_eos=True).token_ids
    reply = tiny_llm.generate("ab", max_tokens=20, stop_token_ids=[free[4]], ignore_eos=True)
    assert (reply.token_ids, reply.finish_reason) == (free[: free.index(free[4])], "stop")


def test_logits_are_fp32_for_every_position(tiny_llm: LLM) -> None:
    logits = tiny_llm.logits([1, 2, 3])
    assert (logits.shape, logits.dtype) == ((3, 259), torch.float32)
    torch.testing.assert_close(tiny_llm.logits([1, 2])[-1], logits[1])


@pytest.mark.parametrize(
    ("prompt", "sampling", "error"),
    [
        ([97] * 160, {}, ContextLengthError),
        ("ab", {"temprature": 1.0}, SamplingError),
        ("ab", {"temperature": -1.0}, SamplingError),
        ("ab", {"temperature": "hot"}, SamplingError),
        ("ab", {"top_p": 0.0}, SamplingError),
        ("ab", {"max_tokens": 0}, SamplingError),
        ("ab", {"stop": [""]}, SamplingError),
        ([], {}, None),
        ([97, 4000], {}, EngineError),
        (torch.tensor([1, 2]), {}, CamelidError),
        (None, {}, CamelidError),
        (5, {}, CamelidError),
        ({"role": "user", "content": "x"}, {}, CamelidError),
        (b"ab", {}, CamelidError),
        ([97.5], {}, CamelidError),
        ([None], {}, CamelidError),
        (["ab", 5], {}, CamelidError),
        ([[[97]]], {}, CamelidError),
        ([torch.tensor([97, 98])], {}, CamelidError),
        ([{"role": "nobody", "content": "x"}], {}, ChatFormatError),
    ],
)
def test_bad_input_is_refused_and_the_engine_lives(
    tiny_llm: LLM, prompt: object, sampling: dict[str, object], error: type[CamelidError] | None
) -> None:
    if error is None:
        assert tiny_llm.generate(prompt, **sampling) == []
    else:
        with pytest.raises(error):
            tiny_llm.generate(prompt, **sampling)
    assert len(tiny_llm.generate("ab", max_tokens=3, ignore_eos=True).token_ids) == 3


@pytest.mark.parametrize("prompt", [None, 5, b"ab", ["ab", "cd"], [[97]], [97.5], torch.tensor([1, 2]), iter([97])])
def test_a_stream_takes_one_prompt_and_refuses_what_is_none(tiny_llm: LLM, prompt: object) -> None:
    with pytest.raises(CamelidError, match="a prompt is text, token ids or messages"):
        tiny_llm.stream(prompt)


def test_an_unknown_engine_option_is_refused_at_once(tiny_llm: LLM, byte_tokenizer: ByteTokenizer) -> None:
    with pytest.raises(EngineError) as caught:
        LLM(tiny_llm.model, byte_tokenizer, max_contxt=100)
    assert caught.value.hint == "did you mean 'max_context'?"


def test_threads_share_a_model(tiny_llm: LLM) -> None:
    sampling = {"max_tokens": 30, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    prompts = ["ab", "cd", "ef", "gh", "ij", "kl"]
    expected = [tiny_llm.generate(prompt, **sampling).text for prompt in prompts]

    def streamed(prompt: str) -> str:
        return "".join(chunk.text for chunk in tiny_llm.stream(prompt, **sampling))

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert [reply.text for reply in pool.map(lambda p: tiny_llm.generate(p, **sampling), prompts)] == expected
        assert list(pool.map(streamed, prompts)) == expected
    assert not tiny_llm.engine.has_unfinished


def test_a_stream_that_is_collected_in_the_middle_of_a_step_is_cancelled_after_it(tiny_llm: LLM) -> None:
    stream = tiny_llm.stream("ab", max_tokens=100, ignore_eos=True)
    next(stream)
    tiny_llm.engine.on_step = lambda stats: stream.close()
    assert len(tiny_llm.generate("cd", max_tokens=3, ignore_eos=True).token_ids) == 3
    tiny_llm.engine.step()
    assert not tiny_llm.engine.has_unfinished


def test_threads_that_come_first_get_the_same_engine(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Engine] = []
    real = Engine.__init__
    barrier = Barrier(4)

    def slowly(self: Engine, *arguments: Any, **options: Any) -> None:
        made.append(self)
        Event().wait(0.05)
        real(self, *arguments, **options)

    def ask(_: int) -> Engine:
        barrier.wait()
        return tiny_llm.engine

    monkeypatch.setattr(Engine, "__init__", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == set(made)
    assert len(made) == 1


def test_scores_can_be_asked_for_while_replies_run(tiny_llm: LLM) -> None:
    expected = tiny_llm.logits([256, 97, 98])
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(tiny_llm.generate, "ab", max_tokens=40, ignore_eos=True) for _ in range(3)]
        scores = [pool.submit(tiny_llm.logits, [256, 97, 98]) for _ in range(10)]
        assert all(torch.equal(each.result(), expected) for each in scores)
        assert {len(each.result().token_ids) for each in replies} == {40}


def test_a_token_that_the_tokenizer_lacks_ends_its_reply_alone(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's vocabulary may be padded."""
    known = tiny_llm.tokenizer.token_bytes

    first, lacking = tiny_llm.generate("cd", max_tokens=2, ignore_eos=True).token_ids
    assert first != lacking

    def token_bytes(token_id: int) -> bytes:
        if token_id == lacking:
            raise TokenizerError(f"there is no token {lacking} in this vocabulary")
        return known(token_id)

    monkeypatch.setattr(tiny_llm.tokenizer, "token_bytes", token_bytes)
    others = {"max_tokens": 20, "ignore_eos": True, "banned_token_ids": [lacking]}
    expected = tiny_llm.generate("ab", **others)
    broken, healthy = tiny_llm.stream("cd", max_tokens=9, ignore_eos=True), tiny_llm.stream("ab", **others)
    next(broken)
    pieces = [next(healthy)]
    with pytest.raises(TokenizerError, match="there is no token"):
        list(broken)
    pieces += healthy
    assert "".join(piece.text for piece in pieces) == expected.text
    assert not tiny_llm.engine.has_unfinished


def test_an_unknown_sampling_setting_names_the_nearest(tiny_llm: LLM) -> None:
    with pytest.raises(SamplingError) as caught:
        tiny_llm.stream("ab", temprature=1.0)
    assert str(caught.value.hint).startswith("did you mean 'temperature'")


def test_one_bad_prompt_of_a_batch_leaves_nothing_behind(tiny_llm: LLM) -> None:
    with pytest.raises(ContextLengthError):
        tiny_llm.generate(["ab", [97] * 500], max_tokens=4)
    while tiny_llm.engine.has_unfinished:
        tiny_llm.engine.step()
    assert len(tiny_llm.generate("ab", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_damaged_weights_are_an_error_not_a_babble(tiny_llm: LLM) -> None:
    with torch.no_grad():
        tiny_llm.model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(EngineError, match="not numbers"):
        tiny_llm.generate("ab", max_tokens=3)
    with pytest.raises(EngineError, match="not numbers"):
        list(tiny_llm.stream("ab", max_tokens=3))


def test_a_base_model_has_no_conversations(tiny_llm: LLM) -> None:
    class Plain(ByteTokenizer):
        special = ByteTokenizer.special.__class__(ids={"<s>": 256}, eos=256)

    with pytest.raises(ChatFormatError) as caught:
        LLM(tiny_llm.model, Plain()).generate(QUESTION)
    assert caught.value.hint


def test_a_tokenizer_larger_than_the_model_is_refused(byte_tokenizer: ByteTokenizer) -> None:
    check_tokenizer_fits(byte_tokenizer, 259)
    check_tokenizer_fits(byte_tokenizer, 1000)
    with pytest.raises(TokenizerError, match="259 ids, the model 258") as caught:
        check_tokenizer_fits(byte_tokenizer, 258, where="model.gguf")
    assert caught.value.where == "model.gguf"
    assert caught.value.hint


def test_several_replies_to_one_prompt(tiny_llm: LLM) -> None:
    sampling = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    replies = tiny_llm.generate("ab", n=3, **sampling)
    assert replies[0] == tiny_llm.generate("ab", **sampling)
    assert len({reply.text for reply in replies}) == 3
    assert tiny_llm.generate(["ab", "cd"], n=2, **sampling)[0] == replies[:2]
    assert tiny_llm.generate("ab", n=1, **sampling) == replies[:1]
    with pytest.raises(SamplingError, match="n must be a whole number from 1 to 65536, not 0"):
        tiny_llm.generate("ab", n=0)
