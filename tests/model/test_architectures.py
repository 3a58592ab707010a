"""What every architecture is held to: transformers' numbers, cached or not, packing, gradients, and folders."""

from __future__ import annotations

import re
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch
from architecture_pairs import VARIANTS, VOCAB_SIZE, make_pair

import camelid
from camelid.checkpoint import load_model, open_checkpoint, save_huggingface
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats
from camelid.model import ARCHITECTURES
from camelid.model.attention import PackedContext

PROMPTS = [[5, 17, 99, 3], [127], list(range(7, 45)), [64, 64]]


@pytest.mark.parametrize("room", ["engine", "kernels"])
def test_no_architecture_is_known_by_name_to_what_runs_it(room: str) -> None:
    names = re.compile(rf"\b({'|'.join(ARCHITECTURES.names())})\b", re.IGNORECASE)
    folder = Path(camelid.__file__).parent / room
    sources = [file for file in folder.rglob("*") if file.suffix in (".py", ".cpp", ".h")]

    assert sources
    assert [file.name for file in sources if names.search(file.read_text())] == []


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_equal_transformers(variant: str) -> None:
    pair = make_pair(variant)
    ids = torch.randint(0, VOCAB_SIZE, (200,))

    theirs = pair.their_logits(ids)

    assert theirs.std() > 0.3  # spread out enough for every part of the network to matter
    assert (pair.our_logits(ids) - theirs).abs().max().item() <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64])
@torch.inference_mode()
def test_logits_over_the_cache_equal_transformers(variant: str, max_batch_tokens: int) -> None:
    pair = make_pair(variant)
    ids = torch.randint(0, VOCAB_SIZE, (70,))

    ours = Engine(pair.ours, max_batch_tokens=max_batch_tokens).logits(ids.tolist())

    assert (ours - pair.their_logits(ids)).abs().max().item() <= 1e-4


@cache
def their_replies(variant: str) -> list[list[int]]:
    """64 greedy tokens to each prompt by transformers' generate, with its cache."""
    theirs = make_pair(variant).theirs
    settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [theirs.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist() for prompt in PROMPTS]


@pytest.mark.parametrize("variant", ["opt", "opt-350m", "galactica", "llama4", "llama4 scout", "llama4 maverick"])
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_batch_tokens": 5}, {"cache_tokens": 128, "block_size": 4}, {"decode_graphs": True}],
    ids=["together", "in chunks", "with preemption", "in steps of one form"],
)
def test_greedy_replies_equal_those_of_transformers(variant: str, limits: dict[str, int]) -> None:
    log: list[StepStats] = []
    engine = Engine(make_pair(variant).ours, on_step=log.append, **limits)

    completions = engine.generate(PROMPTS, SamplingParams(max_tokens=64))

    assert [completion.token_ids for completion in completions] == their_replies(variant)
    assert max(stats.num_sequences for stats in log) > 1
    assert (log[-1].num_preemptions > 0) == ("cache_tokens" in limits)
    if variant != "opt-350m":  # norms after the residuals make one with random weights repeat itself
        assert min(len(set(completion.token_ids)) for completion in completions) > 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_transformers(variant: str) -> None:
    pair = make_pair(variant)
    ids = torch.randint(2, VOCAB_SIZE, (40,))  # transformers gives the padding token, 1, no gradient as an input

    losses = [
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
        for logits in (pair.our_logits(ids), pair.their_logits(ids))
    ]
    for loss in losses:
        loss.backward()

    theirs = dict(pair.theirs.named_parameters())
    for name, parameter in pair.ours.named_parameters():
        expected = theirs[name].grad
        assert expected is not None, name
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_packed_documents_do_not_see_each_other(variant: str) -> None:
    model = make_pair(variant).ours
    for lengths in ([7, 1, 60, 12], [20, 20, 20]):
        documents = [torch.randint(0, VOCAB_SIZE, (n,)) for n in lengths]
        context = PackedContext(lengths)

        packed = model(torch.cat(documents), context.positions(), context)

        for ids, hidden in zip(documents, packed.split(lengths), strict=True):
            alone = PackedContext([len(ids)])
            torch.testing.assert_close(hidden, model(ids, alone.positions(), alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_folders_travel_both_ways(variant: str, tmp_path: Path) -> None:
    pair = make_pair(variant)
    ids = torch.randint(0, VOCAB_SIZE, (50,))
    pair.theirs.save_pretrained(tmp_path / "theirs")

    with closing(open_checkpoint(tmp_path / "theirs")) as checkpoint:
        read = load_model(checkpoint)
    save_huggingface(read, tmp_path / "ours")
    returned = type(pair.theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()

    assert read.config == pair.ours.config
    context = PackedContext([50])
    assert torch.equal(read.logits(read(ids, context.positions(), context)), pair.our_logits(ids))
    assert torch.equal(returned(ids[None]).logits[0], pair.their_logits(ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_closed_form_count_is_the_modules_own(variant: str) -> None:
    model = make_pair(variant).ours

    assert model.config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_weights_depend_on_the_seed_alone(variant: str) -> None:
    config = make_pair(variant).ours.config

    def initial(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed())  # the global generator must play no part
        model = ARCHITECTURES.load(config.model_type).from_config(config)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)  # what is not filled shows
        model.initialize(seed)
        return model.state_dict()

    first, again, other = initial(1), initial(1), initial(2)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(value.std() == 0 or value.std() > 0.05 for value in first.values() if value.ndim > 1)
