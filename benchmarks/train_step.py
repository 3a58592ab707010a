"""How fast camelid trains: against transformers' Trainer and its model in a bare loop, and against matrix products.

    python benchmarks/train_step.py [--shape 15m|110m] [--batch 8] [--length 256] [--rounds 5] [--memory]
                                    [--peers trainer,eager,compiled]

Same weights, same tokens, fused AdamW and clipping at 1.0 on all sides, which take turns; medians. Before timing, all
must give the same loss and the same gradient norm. The ceiling is measured in the same rounds: the matrix products of
one step, in their very shapes, forward and backward, and nothing else; once by torch and once by camelid's kernel.

With --memory, each side first runs three steps in a process of its own. Its figure is the most memory the process ever
held, less what it held after importing everything, less weights, gradients and AdamW's two moments in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import transformers

    from camelid.model.base import LanguageModel
    from camelid.model.llama_config import LlamaConfig

    Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""With OMP_WAIT_POLICY=passive the processor time of all threads hardly depends on who else is there."""

PRESETS = {"15m": "stories15m", "110m": "stories110m"}


PEERS = ("trainer", "eager", "compiled")
CEILINGS = ("torch products", "our products")
OURS = "camelid"


def random_batches(config: LlamaConfig, batch: int, length: int) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    def get(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(config.vocab_size, (batch, length + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return get


def our_step(model: LanguageModel, batch: int, length: int) -> Callable[[int], tuple[float, float]]:
    """The trainer's own step."""
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


def their_model(config: LlamaConfig, model: LanguageModel) -> transformers.PreTrainedModel:
    import transformers

    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf(), use_cache=False))
    peer.load_state_dict(model.state_dict(), strict=False)
    peer.tie_weights()
    return peer.train()


def bare_step(
    config: LlamaConfig, model: LanguageModel, batch: int, length: int, *, compiled: bool
) -> Callable[[int], tuple[float, float]]:
    """transformers' model as its documentation trains it: logits and loss from the model, fused AdamW."""
    peer = their_model(config, model)
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


def trainer_step(
    config: LlamaConfig, model: LanguageModel, batch: int, length: int
) -> Callable[[int], tuple[float, float]]:
    """transformers' Trainer in a thread of its own, which waits for its turn before each step."""
    import transformers

    get = random_batches(config, batch, length)
    may_go, is_done = threading.Semaphore(0), threading.Semaphore(0)
    losses: list[float] = []
    norms: list[float] = []

    class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for number in range(10_000):
                for ids, targets in zip(*get(number), strict=True):
                    yield {"input_ids": ids, "labels": targets, "shift_labels": targets}

    class InTurns(transformers.TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            may_go.acquire()

        def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
            losses.append(float(logs["loss"]))
            norms.append(float(logs["grad_norm"]))
            is_done.release()

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=10_000,
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(their_model(config, model), arguments, train_dataset=Rows(), callbacks=[InTurns()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.model_accepts_loss_kwargs = False  # else it divides by a count that leaves out one token of every sequence
    threading.Thread(target=trainer.train, daemon=True).start()

    def step(number: int) -> tuple[float, float]:
        assert number == len(losses), "the Trainer takes its batches in order"
        may_go.release()
        is_done.acquire()
        return losses[-1], norms[-1]

    return step


def make_step(side: str, config: LlamaConfig, batch: int, length: int) -> Callable[[int], tuple[float, float]]:
    """The step of "camelid" or of one of PEERS, from the same weights."""
    from camelid.model.llama import Llama

    model = Llama.from_config(config)
    model.initialize(seed=0)
    if side == OURS:
        return our_step(model, batch, length)
    if side == "trainer":
        return trainer_step(config, model, batch, length)
    return bare_step(config, model, batch, length, compiled=side == "compiled")


def peak_bytes(side: str, config: LlamaConfig, batch: int, length: int) -> int:
    """What this process came to hold in three steps beyond imports, weights, gradients and optimizer state."""
    import transformers

    import camelid.train.trainer

    # Both are lazy packages: what they import later would be counted as the step's.
    assert transformers.LlamaForCausalLM
    assert transformers.Trainer
    assert camelid.train.trainer.Trainer
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    step = make_step(side, config, batch, length)
    for number in range(3):
        step(number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    from camelid.model.llama import Llama

    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Llama.from_config(config).parameters())
    return peak - pages * resource.getpagesize() - 4 * 4 * parameters


def measured_alone(side: str, shape: str, batch: int, length: int) -> int:
    """`peak_bytes` in a fresh process."""
    command = [sys.executable, __file__, "--shape", shape, "--batch", str(batch), "--length", str(length)]
    run = subprocess.run([*command, "--peak-of", side], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def products(config: LlamaConfig, tokens: int, length: int, chunk: int, multiply: Multiply) -> Callable[[], None]:
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
        multiply(x, weight.T, out[grad.shape])
        multiply(grad, weight, out[x.shape])
        multiply(grad.T, x, out[weight.shape])

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
    parser.add_argument("--peers", default=",".join(PEERS), help="which of transformers' ways to train")
    parser.add_argument("--memory", action="store_true", help="also measure memory, each side in a process of its own")
    parser.add_argument("--peak-of", choices=[OURS, *PEERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from camelid.kernels.product import product
    from camelid.model.llama import Llama
    from camelid.model.presets import PRESETS as SHAPES
    from camelid.train.losses import default_chunk_tokens
    from camelid.train.throughput import flops_per_token

    config = SHAPES[PRESETS[arguments.shape]].config
    batch, length, tokens = arguments.batch, arguments.length, arguments.batch * arguments.length
    if arguments.peak_of:
        print(peak_bytes(arguments.peak_of, config, batch, length))
        return
    sides = [*(peer for peer in arguments.peers.split(",") if peer), OURS]
    peaks = {side: measured_alone(side, arguments.shape, batch, length) for side in sides if arguments.memory}
    runs = {side: make_step(side, config, batch, length) for side in sides}
    clock = CLOCKS[arguments.clock]
    chunk = min(tokens, default_chunk_tokens(config.vocab_size, torch.device("cpu")))
    multiply: list[Multiply] = [lambda a, b, c: torch.mm(a, b, out=c), lambda a, b, c: product(a, b, out_MN=c)]
    ceilings = {name: products(config, tokens, length, chunk, by) for name, by in zip(CEILINGS, multiply, strict=True)}

    first = {side: step(0) for side, step in runs.items()}
    if any(not np.allclose(values, first[OURS], rtol=1e-4) for values in first.values()):
        sys.exit(f"not the same computation: {first}")
    for ceiling in ceilings.values():
        ceiling()
    times: dict[str, list[float]] = {name: [] for name in [*runs, *ceilings]}
    for number in range(1, arguments.rounds + 1):
        for side, step in runs.items():
            times[side].append(seconds(lambda step=step, number=number: step(number), clock))  # type: ignore[misc]
        for name, ceiling in ceilings.items():
            times[name].append(seconds(ceiling, clock))

    speed = {name: tokens / median(values) for name, values in times.items()}
    with torch.device("meta"):
        flops = flops_per_token(Llama.from_config(config), [length] * batch)
    peers = [side for side in sides if side != OURS]
    limit = max(speed[name] for name in ceilings)
    threads = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {arguments.clock} clock"
    print(f"{arguments.shape}: {batch} × {length} tokens, {flops / 1e6:.1f} MFLOP per token, {threads}")
    print(f"{'':14}{'tokens/s':>10}{'GFLOP/s':>10}{'of the ceiling':>18}{'MB beyond the state':>22}")
    for name, rate in speed.items():
        memory = f"{peaks[name] / 1e6:22.0f}" if name in peaks else ""
        print(f"{name:14}{rate:10.0f}{rate * flops / 1e9:10.1f}{rate / limit:18.0%}{memory}")
    result: dict[str, str | float] = {
        "name": f"train_step_{arguments.shape}_tokens_per_s",
        "ours": round(speed[OURS], 1),
        "limit": round(limit, 1),
        "share_of_limit": round(speed[OURS] / limit, 3),
    }
    if peers:
        best = max(speed[peer] for peer in peers)
        result |= {"peer": round(best, 1), "ratio": round(speed[OURS] / best, 3)}
    if peers and peaks:
        least = min(peaks[peer] for peer in peers)
        result |= {
            "memory_ours_mb": round(peaks[OURS] / 1e6),
            "memory_peer_mb": round(least / 1e6),
            "memory_ratio": round(peaks[OURS] / least, 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
