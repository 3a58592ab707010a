"""How fast camelid trains: against transformers' model in a bare loop, and against the step's own matrix products.

    python benchmarks/train_step.py [--shape 15m|110m] [--batch 8] [--length 256] [--rounds 5] [--compiled]

Same weights, same tokens, fused AdamW and clipping at 1.0 on both sides, which take turns; medians. Before timing, both
must give the same loss and the same gradient norm. The ceiling is measured in the same rounds: the matrix products of
one step, in their very shapes, forward and backward, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from camelid.model.base import LanguageModel
    from camelid.model.llama_config import LlamaConfig

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""With OMP_WAIT_POLICY=passive the processor time of all threads hardly depends on who else is there."""

PRESETS = {"15m": "stories15m", "110m": "stories110m"}


def random_batches(config: LlamaConfig, batch: int, length: int) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    def get(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(config.vocab_size, (batch, length + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return get


def our_step(model: LanguageModel, batch: int, length: int) -> Callable[[int], tuple[float, float]]:
    """The trainer's own step."""
    import tempfile

    from camelid.data.batch import Batch
    from camelid.train.settings import OptimizerSettings, ScheduleSettings, TrainSettings
    from camelid.train.trainer import Trainer

    get = random_batches(model.config, batch, length)  # type: ignore[arg-type]

    class Source:
        fingerprint = "random"

        def batch(self, number: int) -> Batch:
            ids, targets = (x.flatten().numpy() for x in get(number))
            weights = np.ones(batch * length, np.float32)
            positions = np.tile(np.arange(length), batch)
            return Batch(ids, targets, weights, positions, (length,) * batch, 0, number * batch)

    settings = TrainSettings(
        steps=10_000,
        optimizer=OptimizerSettings(learning_rate=1e-4),
        schedule=ScheduleSettings(name="constant", warmup_steps=0),
    )
    trainer = Trainer(model, Source(), settings, Path(tempfile.mkdtemp()))

    def step(number: int) -> tuple[float, float]:
        trainer.step = number
        metrics = trainer._train_step(peak=1.0)
        return metrics.loss, metrics.gradient_norm

    return step


def their_step(
    config: LlamaConfig, model: LanguageModel, batch: int, length: int, *, compiled: bool
) -> Callable[[int], tuple[float, float]]:
    """transformers' model as its documentation trains it: logits and loss from the model, fused AdamW."""
    import transformers

    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf(), use_cache=False))
    peer.load_state_dict(model.state_dict(), strict=False)
    peer.tie_weights()
    peer.train()
    if compiled:
        peer.compile()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    get = random_batches(config, batch, length)

    def step(number: int) -> tuple[float, float]:
        ids, targets = get(number)
        # shift_labels are targets already aligned, so that every token counts, as on our side.
        loss = peer(input_ids=ids, labels=targets, shift_labels=targets).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    return step


def products(config: LlamaConfig, tokens: int, length: int, chunk: int) -> Callable[[], None]:
    """Every matrix product of a step in its shape: x·Wᵀ, dy·W and dyᵀ·x for each weight, and attention's own."""
    hidden, width, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = [(hidden, heads), (hidden, keys), (hidden, keys), (heads, hidden)]
    shapes += [(hidden, width), (hidden, width), (width, hidden)]
    layer = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o)) for i, o in shapes]
    head = (torch.randn(chunk, hidden), torch.randn(config.vocab_size, hidden), torch.randn(chunk, config.vocab_size))
    qkv = torch.randn(tokens // length * config.num_attention_heads, length, config.head_dim)
    scores = torch.randn(len(qkv), length, length)
    out = {x.shape: torch.empty_like(x) for triple in (*layer, head) for x in triple}

    def linear(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> None:
        torch.mm(x, weight.T, out=out[grad.shape])
        torch.mm(grad, weight, out=out[x.shape])
        torch.mm(grad.T, x, out=out[weight.shape])

    def run() -> None:
        for _ in range(config.num_hidden_layers):
            for triple in layer:
                linear(*triple)
            # Half of 2 forward and 4 backward products: a causal mask needs no more.
            for _ in range(3):
                torch.bmm(scores, qkv)
        for _ in range(tokens // chunk):
            linear(*head)

    return run


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(PRESETS), default="15m")
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: where others use the machine too")
    parser.add_argument("--compiled", action="store_true", help="also time transformers' model compiled")
    arguments = parser.parse_args()

    from camelid.model.llama import Llama
    from camelid.model.presets import PRESETS as SHAPES
    from camelid.train.losses import default_chunk_tokens
    from camelid.train.throughput import flops_per_token

    config = SHAPES[PRESETS[arguments.shape]].config
    batch, length, tokens = arguments.batch, arguments.length, arguments.batch * arguments.length
    model = Llama.from_config(config)
    model.initialize(seed=0)
    runs = {
        f"transformers {kind}": their_step(config, model, batch, length, compiled=kind == "compiled")
        for kind in (["eager", "compiled"] if arguments.compiled else ["eager"])
    }
    runs["camelid"] = our_step(model, batch, length)
    clock = CLOCKS[arguments.clock]
    chunk = min(tokens, default_chunk_tokens(config.vocab_size, torch.device("cpu")))
    ceiling = products(config, tokens, length, chunk)

    first = {name: step(0) for name, step in runs.items()}
    if any(not np.allclose(values, first["camelid"], rtol=1e-4) for values in first.values()):
        sys.exit(f"not the same computation: {first}")
    ceiling()
    times: dict[str, list[float]] = {name: [] for name in [*runs, "products"]}
    for number in range(1, arguments.rounds + 1):
        for name, step in runs.items():
            times[name].append(seconds(lambda step=step, number=number: step(number), clock))  # type: ignore[misc]
        times["products"].append(seconds(ceiling, clock))

    speed = {name: tokens / median(values) for name, values in times.items()}
    flops = flops_per_token(model, [length] * batch)
    best_peer = max((name for name in runs if name != "camelid"), key=lambda name: speed[name])
    threads = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {arguments.clock} clock"
    print(f"{arguments.shape}: {batch} × {length} tokens, {flops / 1e6:.1f} MFLOP per token, {threads}")
    print(f"{'':22}{'tokens/s':>10}{'GFLOP/s':>10}{'of the products':>18}")
    for name, rate in speed.items():
        print(f"{name:22}{rate:10.0f}{rate * flops / 1e9:10.1f}{rate / speed['products']:18.0%}")
    result = {
        "name": f"train_step_{arguments.shape}_tokens_per_s",
        "ours": round(speed["camelid"], 1),
        "peer": round(speed[best_peer], 1),
        "ratio": round(speed["camelid"] / speed[best_peer], 3),
        "limit": round(speed["products"], 1),
        "share_of_limit": round(speed["camelid"] / speed["products"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
