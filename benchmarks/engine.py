"""How fast the engine serves many at once: against transformers on the same weights, and what Python costs per step.

    python benchmarks/engine.py [--shape 15m] [--streams 1 8 16] [--tokens 48] [--rounds 3] [--threads N]

Greedy, float32, random weights; the contenders take turns and the median round counts. With `--threads 1` all times are
the thread's processor time. transformers comes twice: `generate` pads the prompts of one batch that starts and ends
together, `continuous` is its own continuous batching (`generate_batch`), with a cache of bounded size, since by default
it takes all of a machine's memory. Prompts share their first 128 tokens or nothing; the prompt's time is part of the
round. The limit is what the machine's memory allows: the weights once per step and the keys and values of the past
once per token, at the speed at which both threads read, measured in the same run. The first token of a short request
is timed while a prompt of 1024 tokens comes in just before it. The overhead is the time of a step outside the model's
forward pass, as a share of the step. The last line is the whole table as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, TypeAlias

import torch

from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model.llama import Llama, LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import LlamaForCausalLM

SHAPES = {
    "15m": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
}
"""Those of llama2.c's stories15M and of SmolLM2-135M."""

KV_HEADS = {"15m": 6, "135m": 3}
PROMPT, SHARED = 160, 128

CLOCK = time.perf_counter
"""With one thread, its processor time, which other work on the machine disturbs less."""

Serve: TypeAlias = "Callable[[list[list[int]], int], object]"
"""Prompts and a number of new tokens each."""


def new_models(shape: str) -> tuple[Llama, LlamaForCausalLM]:
    import transformers

    transformers.logging.set_verbosity_error()
    config = LlamaConfig(
        vocab_size=32000,
        max_position_embeddings=2048,
        num_key_value_heads=KV_HEADS[shape],
        tie_word_embeddings=True,
        **SHAPES[shape],
    )
    ours = Llama.from_config(config)
    ours.initialize(seed=0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    return ours, theirs


def prompts_of(num: int, shared: bool, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 32000, (num, PROMPT), generator=generator)
    if shared:
        ids[:, :SHARED] = ids[0, :SHARED].clone()
    return [row.tolist() for row in ids]


def serve_with_camelid(model: Llama) -> Serve:
    # A new engine for each round: nothing is left over from the round before.
    return lambda prompts, num: Engine(model).generate(prompts, SamplingParams(max_tokens=num, ignore_eos=True))


@torch.inference_mode()
def serve_with_generate(model: LlamaForCausalLM) -> Serve:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def serve(prompts: list[list[int]], num: int) -> object:
        ids = torch.tensor(prompts)
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num, **settings)

    return serve


def serve_with_continuous_batching(model: LlamaForCausalLM) -> Serve:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def serve(prompts: list[list[int]], num: int) -> object:
        settings = GenerationConfig(max_new_tokens=num, do_sample=False, eos_token_id=-1, pad_token_id=0)
        page = 32
        num_blocks = len(prompts) * (-(-(PROMPT + num) // page) + 1)
        cache = ContinuousBatchingConfig(page_size=page, num_blocks=num_blocks, max_batch_tokens=512)
        results = model.generate_batch(prompts, settings, cache, progress_bar=False)
        counts = [len(result.generated_tokens) for result in results.values()]
        if counts != [num] * len(prompts):
            raise RuntimeError(f"it generated {counts}")
        return results

    return serve


def bytes_per_second() -> float:
    """How fast both threads together read memory: the best of several sums over half a gigabyte."""
    block = torch.ones(2**27)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return block.nbytes / min(times)


def memory_limit(model: Llama, streams: int, num: int, speed: float) -> float:
    """Tokens per second of decoding alone, if nothing but reading weights and past took time."""
    weights = sum(p.numel() for p in model.parameters()) * 4
    past = model.config.kv_elements_per_token * 4 * (PROMPT + num / 2)
    return streams * speed / (weights + streams * past)


def throughput(contenders: dict[str, Serve], streams: int, shared: bool, num: int, rounds: int) -> dict[str, float]:
    """Median tokens per second, all streams together."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(rounds + 1):
        prompts = prompts_of(streams, shared, seed)
        for name, serve in contenders.items():
            start = CLOCK()
            serve(prompts, num)
            if seed:  # the first round warms up
                rates[name].append(streams * num / (CLOCK() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def first_token_beside_a_long_prompt(model: Llama, rounds: int) -> dict[str, float]:
    """Milliseconds to the short request's first token, and the longest gap of one that was decoding already."""
    firsts, gaps = [], []
    for seed in range(rounds):
        engine = Engine(model)
        [long] = prompts_of(1, False, seed)
        running = engine.add(long[:8], SamplingParams(max_tokens=200, ignore_eos=True))
        engine.step()
        engine.add((long * 7)[:1024], SamplingParams(max_tokens=4, ignore_eos=True))
        short = engine.add(long[10:26], SamplingParams(max_tokens=4, ignore_eos=True))
        start = last = CLOCK()
        first, gap = None, 0.0
        while first is None:
            outputs = engine.step()
            now = CLOCK()
            if any(output.request_id == running for output in outputs):
                gap, last = max(gap, now - last), now
            if any(output.request_id == short for output in outputs):
                first = now - start
        firsts.append(first)
        gaps.append(gap)
    return {"first_token_ms": statistics.median(firsts) * 1e3, "longest_gap_ms": statistics.median(gaps) * 1e3}


def overhead(model: Llama, streams: int, steps: int) -> dict[str, float]:
    """Microseconds of processor time per decoding step outside the forward pass, and its share of the step."""
    engine = Engine(model)
    for prompt in prompts_of(streams, False, 0):
        engine.add(prompt, SamplingParams(max_tokens=steps + 20, ignore_eos=True))
    for _ in range(5):
        engine.step()
    spent = [0.0]
    forward, logits = model.forward, model.logits

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object) -> object:
            start = CLOCK()
            result = function(*args)
            spent[0] += CLOCK() - start
            return result

        return run

    model.forward, model.logits = timed(forward), timed(logits)  # type: ignore[method-assign,assignment]
    shares, costs = [], []
    for _ in range(steps):
        spent[0] = 0.0
        start = CLOCK()
        engine.step()
        step = CLOCK() - start
        costs.append(step - spent[0])
        shares.append((step - spent[0]) / step)
    del model.forward, model.logits
    return {"overhead_us": statistics.median(costs) * 1e6, "overhead_share": statistics.median(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if torch.get_num_threads() == 1:
        global CLOCK
        CLOCK = time.thread_time

    ours, theirs = new_models(arguments.shape)
    contenders = {"camelid": serve_with_camelid(ours), "generate": serve_with_generate(theirs)}
    if torch.get_num_threads() > 1:  # it works in a thread of its own, whose processor time would not be seen
        contenders["continuous"] = serve_with_continuous_batching(theirs)
    speed = bytes_per_second()
    result: dict[str, object] = {"name": "engine", "shape": arguments.shape, "threads": torch.get_num_threads()}
    print(f"{arguments.shape}, {torch.get_num_threads()} threads, prompts of {PROMPT}, {arguments.tokens} new tokens")
    print(f"{'tokens/s':24}" + "".join(f"{name:>14}" for name in (*contenders, "ratio", "limit")))
    for streams in arguments.streams:
        for shared in (False, True):
            rates = throughput(contenders, streams, shared, arguments.tokens, arguments.rounds)
            label = f"{streams} streams, {'shared' if shared else 'distinct'}"
            rates["ratio"] = rates["camelid"] / max(rate for name, rate in rates.items() if name != "camelid")
            rates["limit"] = memory_limit(ours, streams, arguments.tokens, speed)
            print(f"{label:24}" + "".join(f"{rate:14.2f}" for rate in rates.values()))
            result[label] = {name: round(rate, 2) for name, rate in rates.items()}
    waits = first_token_beside_a_long_prompt(ours, arguments.rounds)
    costs = overhead(ours, 8, 60)
    for name, value in {**waits, **costs}.items():
        print(f"{name:24}{value:14.3f}")
        result[name] = round(value, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
