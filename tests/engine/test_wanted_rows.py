"""Hidden states are computed of the tokens that somebody reads, and are those that all tokens' would hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mllama_pair import IMAGE, TEXT, VISION
from stack_steps import Spans, equal, needs_kernels, new_model, step

from camelid.engine import model_runner
from camelid.engine.engine import Completion, Engine
from camelid.engine.invariant import InvariantContext
from camelid.engine.kv_cache import PagedContext
from camelid.engine.params import SamplingParams
from camelid.engine.sequence import Chunk
from camelid.model.base import LanguageModel
from camelid.model.llama4 import Llama4, Llama4Config
from camelid.model.mllama import Mllama, MllamaConfig
from camelid.model.opt import OPT, OPTConfig

SPANS = [(7, 0), (1, 30), (4, 9), (1, 5)]
WANTED = [0, 1, 3, 1]


def rows_of(spans: Spans, wanted: Sequence[int]) -> list[int]:
    """Where the wanted tokens are among all."""
    rows, end = [], 0
    for (new, _), num in zip(spans, wanted, strict=True):
        end += new
        rows += range(end - num, end)
    return rows


@st.composite
def steps(draw: st.DrawFn) -> tuple[Spans, list[int]]:
    """Prompts and their continuations, guesses and decoding sequences, and how many of their tokens are wanted."""
    spans = draw(st.lists(st.tuples(st.just(1) | st.integers(1, 70), st.integers(0, 90)), min_size=1, max_size=6))
    return spans, [draw(st.sampled_from([0, 1, new]) | st.integers(0, new)) for new, _ in spans]


@needs_kernels
@settings(deadline=None, max_examples=60)
@given(steps())
def test_natively_they_have_the_bits_of_all_tokens_states(step_and_wanted: tuple[Spans, list[int]]) -> None:
    (spans, wanted), model = step_and_wanted, new_model((4, 2), 32, 64, 96)
    some, all_of_them = step(model, spans, wanted), step(model, spans)
    assert equal(some, [all_of_them[0][rows_of(spans, wanted)], *all_of_them[1:]])


def new_opt() -> OPT:
    config = OPTConfig(
        vocab_size=300, hidden_size=96, ffn_dim=192, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=300, word_embed_proj_dim=72, init_std=0.1,
    )  # fmt: skip
    return OPT.from_config(config)


def new_llama4() -> Llama4:
    config = Llama4Config(
        vocab_size=300, hidden_size=96, intermediate_size=72, intermediate_size_mlp=128, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=3, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
        interleave_moe_layer_step=2, attention_chunk_size=32, max_position_embeddings=300, initializer_range=0.1,
    )  # fmt: skip
    return Llama4.from_config(config)


def new_mllama() -> Mllama:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MllamaConfig(text_config=TEXT, vision_config=VISION, image_token_index=IMAGE)
    return Mllama.from_config(MllamaConfig.from_hf(theirs.to_dict()))


@pytest.mark.parametrize("new", [new_model, new_llama4, new_mllama, new_opt])
@pytest.mark.parametrize("wanted", [WANTED, [0] * 4, [new for new, _ in SPANS]], ids=["some", "none", "all"])
def test_every_architecture_gives_those_alone(new: Callable[[], LanguageModel], wanted: list[int]) -> None:
    model = new().eval()
    model.initialize(seed=0)
    some, all_of_them = step(model, SPANS, wanted), step(model, SPANS)
    torch.testing.assert_close(some[0], all_of_them[0][rows_of(SPANS, wanted)])
    assert equal(some[1:], all_of_them[1:])


@pytest.mark.parametrize("new", [new_model, new_opt])
def test_in_tiles_they_have_the_bits_of_all_tokens_states(
    new: Callable[[], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camelid.kernels.instruction_set", lambda: None)
    model = new().eval()
    model.initialize(seed=0)

    some = step(model, SPANS, WANTED, context_class=InvariantContext)[0]

    all_of_them = step(model, SPANS, context_class=InvariantContext)[0]
    assert torch.equal(some[: sum(WANTED)], all_of_them[rows_of(SPANS, WANTED)])
    assert len(some) % 4 == 0


@pytest.mark.parametrize("options", [{}, {"batch_invariant": True}, {"num_drafts": 3}], ids=str)
def test_replies_and_scores_do_not_hang_on_what_is_left_out(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 9, (length,), generator=generator).tolist() for length in (3, 90, 41, 17, 60)]
    params = [SamplingParams(max_tokens=9, logprobs=True, ignore_eos=True)] * 4
    params.append(SamplingParams(max_tokens=9, logprobs=True, ignore_eos=True, prompt_logprobs=2))
    left_out = 0

    def replies() -> list[Completion]:
        return Engine(model, max_batch_tokens=32, **options).generate(prompts, params)

    def num_wanted(chunk: Chunk) -> int:
        nonlocal left_out
        num = chunk.length + len(chunk.drafts)
        left_out += num - own(chunk)
        return num

    fewer, own = replies(), model_runner._num_wanted
    monkeypatch.setattr(model_runner, "_num_wanted", num_wanted)
    everything = replies()

    assert [reply.token_ids for reply in fewer] == [reply.token_ids for reply in everything]
    assert [reply.logprobs for reply in fewer] == [reply.logprobs for reply in everything]
    assert fewer[-1].prompt_logprobs == everything[-1].prompt_logprobs
    assert left_out > 100


def test_a_model_that_returns_all_states_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagedContext, "wanted", lambda _, x_TE: x_TE)
    monkeypatch.setattr(PagedContext, "paged_place", lambda _: None)
    with pytest.raises(AssertionError, match="other rows"):
        Engine(new_model()).generate([[1, 2, 3]], SamplingParams(max_tokens=1))
