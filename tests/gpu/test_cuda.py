"""What runs on a CUDA device is what runs on a CPU: `pytest -m gpu tests/gpu` on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import TinyBatches, settings

from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model.attention import PackedContext
from camelid.model.llama import Llama, LlamaConfig
from camelid.train.batch_loss import batch_loss
from camelid.train.losses import chunked_cross_entropy
from camelid.train.trainer import Trainer, prepare_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; runs where there is one"),
]

CUDA = torch.device("cuda")
LENGTHS = (70, 1, 33, 128, 24)


def small_model(device: torch.device = CUDA) -> Llama:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    with device:
        model = Llama.from_config(config)
    model.initialize(seed=3)
    return model


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """‖ours − expected‖ / ‖expected‖."""
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_all_sequences_attend_in_one_call_as_each_does_alone(heads: tuple[int, int], head_dim: int) -> None:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    exact = [torch.randn(tokens, n, head_dim, device=CUDA, requires_grad=True) for n in (heads[0], heads[1], heads[1])]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    pull = torch.randn(tokens, heads[0], head_dim, device=CUDA)

    expected = PackedContext(LENGTHS).attend(0, *exact, scale=0.2)
    ours = PackedContext(LENGTHS, CUDA).attend(0, *rounded, scale=0.2)
    expected_grads = torch.autograd.grad(expected, exact, pull)
    grads = torch.autograd.grad(ours, rounded, pull.bfloat16())

    assert distance(ours, expected) < 1e-2
    assert max(map(distance, grads, expected_grads)) < 2e-2


def test_the_logits_are_those_of_a_cpu() -> None:
    ids = torch.randint(96, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    there, here = small_model(), small_model(torch.device("cpu"))
    context = PackedContext(LENGTHS)
    expected = here.logits(here(ids, context.positions(), context))
    context = PackedContext(LENGTHS, CUDA)

    exact = there.logits(there(ids.to(CUDA), context.positions(CUDA), context))
    with torch.autocast("cuda", torch.bfloat16):
        rounded = there.logits(there(ids.to(CUDA), context.positions(CUDA), context))

    assert distance(exact.cpu(), expected) < 1e-5
    assert distance(rounded.cpu(), expected) < 2e-2


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_compiled_loss_has_the_gradients_of_the_plain_one(z_loss: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device=CUDA, requires_grad=True)
    output = torch.randn(1000, 64, device=CUDA, requires_grad=True)
    targets, weights = torch.randint(1000, (300,), device=CUDA), torch.rand(300, device=CUDA)
    results = []
    for compiled in (False, True):
        sums = chunked_cross_entropy(
            hidden, output, targets, weights, z_loss=z_loss, chunk_tokens=128, compiled=compiled
        )
        results.append([sums.cross_entropy, *torch.autograd.grad(sums.objective, (hidden, output))])
    assert all(distance(ours, expected) < 1e-5 for ours, expected in zip(results[1], results[0], strict=True))


def test_a_compiled_step_is_the_plain_one() -> None:
    batch = TinyBatches(lengths=(100, 30, 126)).batch(0)
    losses, grads = [], []
    for dtype, compiled in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        model = small_model()
        prepare_blocks(model, activation_checkpointing=False, compiled=compiled)
        sums = batch_loss(model, batch, dtype, compiled=compiled)
        sums.objective.backward()
        losses.append(float(sums.cross_entropy))
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-2)
    assert max(distance(g, grads[0]) for g in grads[1:]) < 5e-2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_learns_and_goes_on_from_its_checkpoint(optimizer: str, tmp_path: Path) -> None:
    changes = {"steps": 40, "checkpoint_every": 20, "compile": False}
    chosen = settings(**changes)
    chosen = chosen.model_copy(update={"optimizer": chosen.optimizer.model_copy(update={"name": optimizer})})
    losses: list[float] = []
    trainer = Trainer(small_model(), TinyBatches(), chosen, tmp_path, on_step=lambda m: losses.append(m.loss))
    trainer.run()
    assert losses[-1] < 0.7 * losses[0]

    longer = Trainer(small_model(), TinyBatches(), chosen, tmp_path)
    assert longer.step == 40
    expected = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in longer.model.named_parameters())


def test_replies_are_those_of_a_cpu_at_any_batch_size() -> None:
    prompts = [[7, 1, 5], [9] * 40, list(range(60)), [3]]
    params = SamplingParams(max_tokens=48)
    expected = Engine(small_model(torch.device("cpu"))).generate(prompts, params)

    engine = Engine(small_model(), max_batch_tokens=32)
    together = [reply.token_ids for reply in engine.generate(prompts, params)]
    alone = [engine.generate([prompt], params)[0].token_ids for prompt in prompts]

    assert together == alone == [reply.token_ids for reply in expected]
