"""Each filter against its formula and against transformers; the draw against its distribution."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camelid.engine.params import SamplingParams
from camelid.engine.sampling import filters, sample
from camelid.engine.sampling.draw import best_tokens, draw, gumbel_noise, uniform
from camelid.engine.sampling.filters import NUM_CANDIDATES, apply_temperature, min_p_threshold, top_k_top_p_threshold
from camelid.engine.sampling.penalties import penalize_repetition
from camelid.engine.sequence import Sequence

V = 50


def new_sequence(params: SamplingParams, token_ids: list[int] | None = None, seed: int = 0) -> Sequence:
    return Sequence(0, token_ids or [0], params, seed=seed, stop_ids=frozenset(), max_length=10**9)


def random_logits(num_rows: int, seed: int = 0, vocab_size: int = V) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def kept(scores_BV: Tensor, thresholds_B: Tensor) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in scores_BV >= thresholds_B[:, None]]


def support(logits_V: Tensor, params: SamplingParams, token_ids: list[int] | None = None) -> set[int]:
    """Every token that `sample` can give, found by trying many seeds."""
    tries = 4000
    sequences = [new_sequence(params, token_ids, seed=seed) for seed in range(tries)]
    return {token for token in sample(logits_V.expand(tries, -1), sequences) if token is not None}


def by_definition(logits: list[float], params: SamplingParams, seen: set[int]) -> list[float]:
    """The distribution after every filter, in plain Python, one definition after another."""
    penalty = params.repetition_penalty
    logits = [(x / penalty if x > 0 else x * penalty) if token in seen else x for token, x in enumerate(logits)]
    weights = [math.exp((x - max(logits)) / params.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        total, mass, nucleus = sum(weights[token] for token in order), 0.0, []
        for token in order:
            if mass >= params.top_p * total:
                break
            nucleus.append(token)
            mass += weights[token]
        order = nucleus
    order = [token for token in order if weights[token] >= params.min_p * weights[order[0]]]
    total = sum(weights[token] for token in order)
    return [weights[token] / total if token in order else 0.0 for token in range(len(logits))]


SETTINGS = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3),
    top_k=st.sampled_from([0, 1, 3, 10, 49, 50, 1000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7, 5.0]),
)


def everything(vocab_size: int) -> torch.Tensor:
    """All token ids, as one row that stands for all."""
    return torch.arange(vocab_size)[None]


@settings(deadline=None)
@given(SETTINGS, st.integers(0, 10_000), st.lists(st.integers(0, V - 1), min_size=1, max_size=8))
def test_the_drawn_token_is_the_best_of_the_defined_distribution_with_noise(
    params: SamplingParams, seed: int, token_ids: list[int]
) -> None:
    logits = random_logits(1, seed)
    probabilities = by_definition(logits[0].tolist(), params, set(token_ids))
    [token] = sample(logits, [new_sequence(params, token_ids, seed)])
    assert token is not None
    noise = gumbel_noise([(seed, 0)], everything(V))[0].tolist()
    noisy = [math.log(p) + n if p > 0 else -math.inf for p, n in zip(probabilities, noise, strict=True)]
    assert noisy[token] >= max(noisy) - 1e-4


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "repetition_penalty", "temperature", "all"])
def test_filters_agree_with_transformers(name: str) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    values = {"top_k": 12, "top_p": 0.8, "min_p": 0.03, "repetition_penalty": 1.4, "temperature": 0.6}
    if name != "all":
        values = {name: values[name]}
    params = SamplingParams(**{"temperature": 1.0, **values})  # type: ignore[arg-type]
    classes = {
        "repetition_penalty": processors.RepetitionPenaltyLogitsProcessor,
        "temperature": processors.TemperatureLogitsWarper,
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    token_ids = [3, 7, 7, 20, 41]
    logits = random_logits(20)
    theirs = logits.clone()
    for key, processor in classes.items():
        if key in values:
            theirs = processor(values[key])(torch.tensor([token_ids] * 20), theirs)

    ours = logits.clone()
    for row in ours:
        penalize_repetition(row, token_ids, params.repetition_penalty)
    ours = apply_temperature(ours, [params.temperature] * 20)
    thresholds = torch.maximum(
        top_k_top_p_threshold(ours, [params.top_k] * 20, [params.top_p] * 20),
        min_p_threshold(ours, [params.min_p] * 20),
    )
    ours = ours.masked_fill(ours < thresholds[:, None], -math.inf)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))
    assert name in ("repetition_penalty", "temperature") or (ours == -math.inf).any()


def test_each_row_has_its_own_thresholds() -> None:
    scores = random_logits(1).expand(5, -1)
    order = scores[0].argsort(descending=True).tolist()
    sets = kept(scores, top_k_top_p_threshold(scores, [3, 0, 1, 0, 60], [1.0, 1.0, 0.5, 1e-9, 1.0]))
    assert sets == [set(order[:3]), set(order), set(order[:1]), set(order[:1]), set(order)]


def test_equal_scores_are_kept_or_dropped_together() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert kept(scores, top_k_top_p_threshold(scores, [2], [1.0])) == [{0, 1, 2, 4}]
    assert kept(scores, top_k_top_p_threshold(scores, [1], [1.0])) == [{1}]
    assert kept(scores, min_p_threshold(scores, [math.exp(-1)])) == [{0, 1, 2, 4}]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 4, 5, 9, 400]), st.sampled_from([1.0, 0.99, 0.7, 0.2])), min_size=1, max_size=5
    ),
    st.integers(0, 1000),
    st.sampled_from([0.05, 1.0]),
)
def test_looking_at_the_best_candidates_first_changes_nothing(
    rows: list[tuple[int, float]], seed: int, sharpness: float
) -> None:
    scores = (random_logits(len(rows), seed, vocab_size=300) * sharpness).round(decimals=1)
    top_k, top_p = zip(*rows, strict=True)
    sets = []
    for sampling_candidates in (5, 300):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filters, "NUM_CANDIDATES", sampling_candidates)
            sets.append(kept(scores, top_k_top_p_threshold(scores, top_k, top_p)))
    assert sets[0] == sets[1]


def test_temperature_zero_is_greedy_and_needs_no_seed() -> None:
    logits = random_logits(30)
    sequences = [new_sequence(SamplingParams(top_k=5, top_p=0.5, min_p=0.1), seed=seed) for seed in range(30)]
    assert sample(logits, sequences) == logits.argmax(-1).tolist()


def test_greedy_heeds_the_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0], [-1.0, -1.5, -2.0]])
    params = SamplingParams(repetition_penalty=2.0)
    assert sample(logits, [new_sequence(params, [0]), new_sequence(params, [0, 0])]) == [1, 1]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, -math.inf])
    tries = 20_000
    sequences = [new_sequence(SamplingParams(temperature=1.5), seed=seed) for seed in range(tries)]
    counts = Counter(sample(logits.expand(tries, -1), sequences))
    expected = (logits / 1.5).softmax(-1) * tries
    chi_square = sum((counts[token] - float(e)) ** 2 / float(e) for token, e in enumerate(expected[:4]))
    assert chi_square < 16.3  # 99.9th percentile at 3 degrees of freedom
    assert counts[4] == 0


def test_positions_of_one_seed_draw_independently() -> None:
    def tokens(places: list[tuple[int, int]], vocab_size: int) -> list[int]:
        return gumbel_noise(places, everything(vocab_size)).argmax(-1).tolist()

    seeds = range(16_000)
    pairs = Counter(zip(tokens([(s, 0) for s in seeds], 4), tokens([(s, 1) for s in seeds], 4), strict=True))
    assert sum((pairs[i, j] - 1000) ** 2 / 1000 for i in range(4) for j in range(4)) < 37.7  # 99.9th, 15 degrees
    along = Counter(tokens([(7, position) for position in range(16_000)], 16))
    assert sum((along[i] - 1000) ** 2 / 1000 for i in range(16)) < 37.7


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_a_row_does_not_depend_on_the_rows_beside_it(seed: int) -> None:
    chance = random.Random(seed)
    logits = random_logits(6, seed, vocab_size=2000)
    sequences = [
        new_sequence(
            SamplingParams(
                temperature=chance.choice([0, 0.5, 1.5]),
                top_k=chance.choice([0, 0, 5, 1500]),
                top_p=chance.choice([1, 0.9, 0.5]),
                min_p=chance.choice([0, 0.02]),
                repetition_penalty=chance.choice([1, 1.2]),
            ),
            [chance.randrange(2000) for _ in range(5)],
            seed=chance.randrange(2**63),
        )
        for _ in range(6)
    ]
    alone = [sample(logits[row : row + 1], sequences[row : row + 1])[0] for row in range(6)]
    order = chance.sample(range(6), 6)
    assert sample(logits[order], [sequences[row] for row in order]) == [alone[row] for row in order]


def test_tokens_of_no_probability_are_never_drawn() -> None:
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert set(draw(scores.expand(1000, -1), [(seed, 0) for seed in range(1000)])) == {1, 3}


def test_what_filters_leave_is_drawn_as_from_the_whole_vocabulary() -> None:
    vocab_size = 2 * NUM_CANDIDATES
    scores = random_logits(50, vocab_size=vocab_size)
    scores[:, NUM_CANDIDATES // 2 :: 2] = -math.inf
    places = [(seed, seed % 7) for seed in range(50)]
    few = scores.masked_fill(torch.arange(vocab_size) % 3 > 0, -math.inf)
    for kept in (scores, few):
        expected = (kept + gumbel_noise(places, everything(vocab_size))).argmax(-1).tolist()
        assert draw(kept, places) == expected


def test_noise_has_gumbels_distribution_and_is_the_same_everywhere() -> None:
    noise = gumbel_noise([(5, position) for position in range(10)], everything(50_000))
    assert noise.isfinite().all()
    for x in (-1.5, 0.0, 1.0, 5.0):  # of 500,000 values, within 5 standard deviations
        share = math.exp(-math.exp(-x))
        assert abs((noise <= x).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / noise.numel())
    assert abs(torch.corrcoef(noise).fill_diagonal_(0)).max() < 0.03
    assert torch.equal(noise[3:4, :100], gumbel_noise([(5, 3)], everything(100)))


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.lists(st.integers(0, 200_000), min_size=1, max_size=5))
def test_noise_is_a_splitmix_of_seed_position_and_token(seed: int, position: int, token_ids: list[int]) -> None:
    """SplitMix64 as Steele et al. print it, in Python's own whole numbers."""
    digest = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    expected = []
    for token in token_ids:
        z = (int.from_bytes(digest, "little") + (token + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        expected.append(-math.log(-math.log(((z >> 12) + 0.5) / 2**52)))
    noise = gumbel_noise([(seed, position)], torch.tensor([token_ids]))[0].tolist()
    assert noise == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_what_a_place_chooses_beside_its_token_is_uniform_and_of_its_own() -> None:
    values = [uniform(seed, position) for seed in range(100) for position in range(100)]
    counts = Counter(int(value * 16) for value in values)
    assert sum((counts[i] - 625) ** 2 / 625 for i in range(16)) < 37.7  # 99.9th percentile, 15 degrees of freedom
    firsts = [gumbel_noise([(seed, 0)], everything(1))[0, 0].item() for seed in range(2000)]
    others = [uniform(seed, 0) for seed in range(2000)]
    assert abs(torch.corrcoef(torch.tensor([firsts, others]))[0, 1]) < 0.1


def test_xtc_drops_the_likeliest_as_often_as_it_is_told_to() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, 0.0])
    tries = 4000
    params = SamplingParams(temperature=1e-3, xtc_probability=0.3, xtc_threshold=0.2)
    sequences = [new_sequence(replace(params), seed=seed) for seed in range(tries)]
    counts = Counter(sample(logits.expand(tries, -1), sequences))
    assert set(counts) == {0}  # at this temperature a single token reaches the threshold
    warm = replace(params, temperature=1.0)
    counts = Counter(sample(logits.expand(tries, -1), [new_sequence(warm, seed=seed) for seed in range(tries)]))
    p = logits.softmax(-1).tolist()
    kept = [0.7 * p[0], 0.7 * p[1], 0.7 * p[2] + 0.3 * p[2] / (p[2] + p[3]), 0.7 * p[3] + 0.3 * p[3] / (p[2] + p[3])]
    assert sum((counts[t] - tries * share) ** 2 / (tries * share) for t, share in enumerate(kept)) < 16.3  # 99.9th


def test_typical_agrees_with_transformers() -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    for seed, p in ((0, 0.9), (1, 0.5), (2, 0.2)):
        logits = random_logits(20, seed)
        theirs = processors.TypicalLogitsWarper(mass=p)(None, logits.clone())
        ours = torch.stack([filters.typical(row, p) for row in logits])
        assert torch.equal(ours == -math.inf, theirs == -math.inf)
        assert (ours == -math.inf).any()


def test_a_seed_gives_the_same_noise_in_every_release() -> None:
    noise = gumbel_noise([(7, 3)], everything(4))[0].tolist()
    assert noise == pytest.approx([1.729862, 1.563717, -1.089219, 1.044356], abs=1e-6)


def test_rounding_of_the_scores_leaves_the_draw_alone() -> None:
    tries = 300
    logits = random_logits(1, vocab_size=20_000) / 3
    rounded = logits + 1e-4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    sequences = [new_sequence(SamplingParams(temperature=1.0), seed=seed) for seed in range(tries)]
    assert sample(logits.expand(tries, -1), sequences) == sample(rounded.expand(tries, -1), sequences)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_row_that_is_not_numbers_has_no_token(broken: float) -> None:
    logits = random_logits(3)
    logits[1, 7] = broken
    for temperature in (0.0, 1.0):
        tokens = sample(logits, [new_sequence(SamplingParams(temperature=temperature, top_p=0.9))] * 3)
        assert [token is None for token in tokens] == [False, True, False]
    assert sample(torch.full((1, V), -math.inf), [new_sequence(SamplingParams())]) == [None]


@pytest.mark.parametrize(
    "extreme",
    [
        SamplingParams(temperature=5e-324),
        SamplingParams(temperature=1e-30, top_p=1e-300),
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.7e308, top_k=1),
        SamplingParams(temperature=1.0, min_p=1.0),
    ],
)
def test_the_most_extreme_settings_leave_the_best_token(extreme: SamplingParams) -> None:
    logits = random_logits(10)
    assert sample(logits, [new_sequence(extreme)] * 10) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [5e-324, 1.7e308], ids=["least", "greatest"])
def test_the_most_extreme_penalties_order_tokens_by_whether_they_were_seen(penalty: float) -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0, 0.0]])
    assert sample(logits, [new_sequence(SamplingParams(repetition_penalty=penalty), [1])]) == [int(penalty < 1)]
    assert sample(logits, [new_sequence(SamplingParams(temperature=9, repetition_penalty=penalty), [1])]) != [None]


def test_everything_can_be_drawn_without_filters() -> None:
    assert support(torch.zeros(8), SamplingParams(temperature=1.0)) == set(range(8))
    assert support(torch.arange(8.0) / 8, SamplingParams(temperature=1.0, top_k=3)) == {5, 6, 7}


def test_each_token_of_a_reply_is_drawn_anew() -> None:
    sequence = new_sequence(SamplingParams(temperature=1.0), [0], seed=3)
    for _ in range(20):
        [token] = sample(torch.zeros(1, V), [sequence])
        assert token is not None
        sequence.token_ids.append(token)
    assert len(set(sequence.token_ids)) > 10


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 4),
    num_tokens=st.integers(1, 700),
    levels=st.integers(1, 50),
    odd=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_the_best_token_is_the_first_with_the_greatest_score(
    rows: int, num_tokens: int, levels: int, odd: float | None, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Only float32 goes through a native kernel.
    scores = torch.randint(-levels, levels, (rows, num_tokens), generator=generator).to(dtype)
    if odd is not None:
        scores[0, int(torch.randint(num_tokens, (), generator=generator))] = odd

    best, tokens = best_tokens(scores)

    torch.testing.assert_close(torch.tensor(best, dtype=dtype), scores.amax(-1), rtol=0, atol=0, equal_nan=True)
    for row in range(rows):
        if not math.isnan(best[row]):
            assert tokens[row] == scores[row].tolist().index(best[row])
