"""Every setting of a request against its definition in plain Python, alone and together, in the documented order."""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2b
from statistics import pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import SamplingError
from camelid.engine.params import SamplingParams
from camelid.engine.sampling import NONE_LEFT, sample
from camelid.engine.sampling.draw import gumbel_noise, uniform
from camelid.engine.sampling.logprobs import token_logprobs
from camelid.engine.sampling.penalties import repeated_lengths
from camelid.engine.sequence import Sequence
from camelid.engine.vocabulary import Vocabulary

V = 12
LETTERS = Vocabulary([b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ca", b"x", b" ", b"\n", b"", b"cab"], {}, lambda _: [])


def new_sequence(
    params: SamplingParams, prompt: list[int], reply: list[int], seed: int = 0, stop_ids: frozenset[int] = frozenset()
) -> Sequence:
    sequence = Sequence(
        0,
        list(prompt),
        params,
        seed=seed,
        stop_ids=stop_ids,
        max_length=10**9,
        banned_texts=tuple(map(LETTERS.banned, params.banned_strings)),
        dry_breakers=frozenset({8}),
    )
    for token in reply:
        sequence.set_next_mu(2 * params.mirostat_tau)
        sequence.token_ids.append(token)
    return sequence


def longest_repeat(context: list[int], token: int, breakers: set[int]) -> int:
    """The most last tokens that have stood before `token` somewhere earlier, by trying all."""
    longest = 0
    for place in range(1, len(context)):
        for length in range(1, place + 1):
            end, before = context[len(context) - length :], context[place - length : place]
            if context[place] == token and end == before and not breakers & {*end, token}:
                longest = max(longest, length)
    return longest


def adjusted(logits: list[float], params: SamplingParams, prompt: list[int], reply: list[int]) -> list[float]:
    bias = dict(params.logit_bias)
    logits = [x + bias.get(token, 0) for token, x in enumerate(logits)]
    for token in {*prompt, *reply}:
        x = logits[token]
        logits[token] = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
    for token in set(reply):
        logits[token] -= params.presence_penalty + params.frequency_penalty * reply.count(token)
    context = [*prompt, *reply][-params.dry_range if params.dry_range else 0 :]
    for token in range(V):
        length = longest_repeat(context, token, {8})
        if params.dry_multiplier and length >= params.dry_allowed_length:
            logits[token] -= params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
    said = b"".join(LETTERS.token_bytes[token] for token in reply)
    for token in range(V):
        texts = [text.encode() for text in params.banned_strings]
        completes = any((said + LETTERS.token_bytes[token]).count(text) > said.count(text) for text in texts)
        if completes or token in params.banned_token_ids:
            logits[token] = -math.inf
    return logits


def softmax(scores: list[float]) -> list[float]:
    best = max(scores)
    weights = [math.exp(x - best) for x in scores]
    return [weight / sum(weights) for weight in weights]


def only(scores: list[float], kept: set[int]) -> list[float]:
    return [x if token in kept else -math.inf for token, x in enumerate(scores)]


def filtered(scores: list[float], params: SamplingParams, chance: float, mu: float) -> list[float]:
    """What is left of the scores, one definition after another."""
    order = sorted(range(V), key=lambda token: -scores[token])
    if params.top_n_sigma:
        bound = max(scores) - params.top_n_sigma * pstdev([x for x in scores if x > -math.inf])
        scores = only(scores, {token for token in order if scores[token] >= bound})
    if params.top_k:
        scores = only(scores, set(order[: params.top_k]))
    if params.top_p < 1:
        p, mass, nucleus = softmax(scores), 0.0, set()
        for token in order:
            if mass < params.top_p:
                nucleus.add(token)
            mass += p[token]
        scores = only(scores, nucleus)
    p = softmax(scores)
    scores = only(scores, {token for token in order if p[token] >= params.min_p * max(p)})
    if params.typical_p < 1:
        p = softmax(scores)
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        nearest = sorted((t for t in order if p[t] > 0), key=lambda t: abs(-math.log(p[t]) - entropy))
        mass, kept = 0.0, set()
        for token in nearest:
            if mass < params.typical_p:
                kept.add(token)
            mass += p[token]
        scores = only(scores, kept)
    if chance < params.xtc_probability:
        p = softmax(scores)
        top = [token for token in order if p[token] >= params.xtc_threshold]
        scores = only(scores, set(range(V)) - set(top[:-1]))
    if params.mirostat_tau:
        p = softmax(scores)
        kept = {token for token in order if p[token] > 0 and -math.log2(p[token]) <= mu} or {order[0]}
        scores = only(scores, kept)
    return scores


FILTERS = {
    "top_n_sigma": st.sampled_from([0.0, 0.5, 1.5]),
    "top_k": st.sampled_from([0, 0, 3, 7]),
    "top_p": st.sampled_from([1.0, 0.9, 0.4]),
    "min_p": st.sampled_from([0.0, 0.05]),
    "typical_p": st.sampled_from([1.0, 0.9, 0.3]),
    "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
    "xtc_threshold": st.sampled_from([0.05, 0.2]),
}
RULES = {
    "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "repetition_penalty": st.sampled_from([1.0, 1.3]),
    "presence_penalty": st.sampled_from([0.0, 0.7, -0.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.4]),
    "dry_multiplier": st.sampled_from([0.0, 0.8]),
    "dry_allowed_length": st.integers(1, 3),
    "dry_range": st.sampled_from([0, 5]),
    "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-3, 3), max_size=3),
    "banned_token_ids": st.lists(st.integers(0, V - 1), max_size=2),
    "banned_strings": st.lists(st.sampled_from(["abc", "bc", "a a", "x"]), max_size=2),
}
PARAMS = st.builds(SamplingParams, **RULES, **FILTERS) | st.builds(
    SamplingParams, **RULES, mirostat_tau=st.sampled_from([0.5, 1.5, 3.0])
)
TOKENS = st.lists(st.integers(0, V - 1), min_size=1, max_size=10)


@settings(deadline=None, max_examples=400)
@given(PARAMS, st.integers(0, 10_000), TOKENS, TOKENS)
def test_the_token_is_the_defined_one(params: SamplingParams, seed: int, prompt: list[int], reply: list[int]) -> None:
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(seed)) * 2
    before = logits.clone()
    sequence = new_sequence(params, prompt, reply, seed)

    [token] = sample(logits, [sequence])

    assert torch.equal(logits, before)
    scores = adjusted(logits[0].tolist(), params, prompt, reply)
    if max(scores) == -math.inf:
        assert token == NONE_LEFT
        return
    assert token is not None
    if params.temperature > 0:
        scores = filtered(
            [x / params.temperature for x in scores], params, uniform(seed, len(reply)), 2 * params.mirostat_tau
        )
        noise = gumbel_noise([(seed, len(reply))], torch.arange(V)[None])[0].tolist()
        if params.mirostat_tau:
            surprise = -math.log2(softmax(scores)[token])
            expected = 2 * params.mirostat_tau - params.mirostat_eta * (surprise - params.mirostat_tau)
            sequence.token_ids.append(token)
            assert sequence.mirostat_mu == pytest.approx(expected, abs=1e-4)
        scores = [x + n for x, n in zip(scores, noise, strict=True)]
    assert scores[token] >= max(scores) - 1e-4


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.sets(st.integers(0, 2), max_size=1))
def test_repeats_are_found_in_linear_time_as_by_trying_all(context: list[int], breakers: set[int]) -> None:
    found = repeated_lengths(context, breakers)
    assert found == {t: n for t in range(3) if (n := longest_repeat(context, t, breakers))}


def test_a_stop_token_waits_for_min_tokens() -> None:
    logits = torch.zeros(1, V)
    logits[0, 4] = 9.0
    params = SamplingParams(min_tokens=2)
    replies = [new_sequence(params, [0], [1] * n, stop_ids=frozenset({4})) for n in range(4)]
    assert [sample(logits, [sequence])[0] == 4 for sequence in replies] == [False, False, True, True]


def test_mirostat_holds_the_surprise_near_its_target() -> None:
    logits = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0)) * 2
    log2_p = logits[0].double().log_softmax(-1) / math.log(2)
    means = []
    for tau in (2.0, 5.0):
        sequence = Sequence(
            0,
            [0],
            SamplingParams(temperature=1.0, mirostat_tau=tau),
            seed=1,
            stop_ids=frozenset(),
            max_length=10**9,
        )
        surprises = []
        for _ in range(400):
            [token] = sample(logits, [sequence])
            assert token is not None
            sequence.token_ids.append(token)
            surprises.append(-float(log2_p[token]))
        means.append(sum(surprises[100:]) / 300)
    assert means[0] < means[1] < -float((log2_p.exp2() * log2_p).sum())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.5, 2.0, 4.0]), st.sampled_from([0.1, 0.7]))
def test_mirostats_bound_follows_its_recursion(seed: int, tau: float, eta: float) -> None:
    params = SamplingParams(temperature=1.0, mirostat_tau=tau, mirostat_eta=eta)
    sequence, mu = new_sequence(params, [0], [], seed), 2 * tau
    for step in range(25):
        logits = torch.randn(1, V, generator=torch.Generator().manual_seed(seed * 100 + step)) * 2
        assert sequence.mirostat_mu == pytest.approx(mu, abs=1e-3)
        [token] = sample(logits, [sequence])
        assert token is not None
        scores = filtered(logits[0].tolist(), params, 1.0, sequence.mirostat_mu)
        assert scores[token] > -math.inf
        mu = sequence.mirostat_mu - eta * (-math.log2(softmax(scores)[token]) - tau)
        sequence.token_ids.append(token)


def test_drys_breakers_are_the_tokens_that_have_their_text() -> None:
    logits = torch.zeros(1, V)
    logits[0, 3] = 1.0  # "ab", which would go on with a repeat across "x"
    params = SamplingParams(dry_multiplier=5.0, dry_allowed_length=1, dry_sequence_breakers=("x",))
    context = [7, 3, 0, 7]
    sequence = new_sequence(params, context, [])
    assert sample(logits, [sequence]) == [0]  # token 3 is put off, and the first of the others is the best
    sequence.dry_breakers = LETTERS.tokens_with("x")
    assert sequence.dry_breakers == {7}
    assert sample(logits, [sequence]) == [3]
    assert LETTERS.tokens_with("bc") == {4, 5}


def test_the_seeds_of_several_replies_are_the_same_in_every_release() -> None:
    seeds = [params.seed for params in SamplingParams(n=3, seed=5).samples()]
    digests = [blake2b(n.to_bytes(8, "little"), digest_size=8, key=(5).to_bytes(8, "little")).digest() for n in (1, 2)]
    assert seeds == [5, *(int.from_bytes(digest, "little") // 2 for digest in digests)]
    assert {params.seed for params in SamplingParams(n=3).samples()} == {None}
    assert {params.n for params in SamplingParams(n=3, seed=5).samples()} == {1}


def test_a_repeated_draw_changes_no_state() -> None:
    sequence = new_sequence(SamplingParams(temperature=1.0, mirostat_tau=2.0), [0], [1, 2])
    logits = torch.randn(1, V)
    first = sample(logits, [sequence])
    assert sample(logits, [sequence]) == first
    sequence.token_ids.append(first[0] or 0)
    assert sequence.mirostat_mu != 4.0


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(2, V)
    first, second = token_logprobs(logits, [3, 5], 4)
    expected = [softmax(row) for row in logits.tolist()]
    assert first.logprob == pytest.approx(math.log(expected[0][3]), abs=1e-5)
    assert second.token_id == 5
    best = sorted(range(V), key=lambda token: -expected[1][token])[:4]
    assert [token for token, _ in second.top] == best
    assert [value for _, value in second.top] == pytest.approx([math.log(expected[1][t]) for t in best], abs=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"typical_p": 0}, "typical_p must be above 0"),
        ({"top_n_sigma": -1}, "top_n_sigma"),
        ({"xtc_probability": 1.5}, "xtc_probability"),
        ({"xtc_threshold": 0}, "xtc_threshold"),
        ({"mirostat_tau": 5, "top_k": 3}, "mirostat takes their place"),
        ({"mirostat_eta": 0}, "mirostat_eta"),
        ({"presence_penalty": math.nan}, "presence_penalty must be a number"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
        ({"banned_strings": [""]}, "banned_strings"),
        ({"banned_token_ids": [-1]}, "banned_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens must be at most max_tokens \(4\)"),
        ({"top_logprobs": 3}, "top_logprobs must be 0 without logprobs"),
        ({"prompt_logprobs": 101}, "prompt_logprobs"),
        ({"regex": "a", "choice": ["b"]}, "one grammar, not regex and choice"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        replace(SamplingParams(), **bad)  # type: ignore[arg-type]


def test_a_bias_is_taken_as_json_has_it() -> None:
    assert SamplingParams(logit_bias={"7": -100}).logit_bias == ((7, -100),)  # type: ignore[arg-type]
