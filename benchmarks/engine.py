"""How fast the engine serves many at once: against transformers on the same weights, and what Python costs per step.

    python benchmarks/engine.py [--shape 15m] [--streams 1 8 16] [--tokens 48] [--rounds 3] [--threads N]
    python benchmarks/engine.py --device cuda --shape 1b --streams 1 8 64 --tokens 128 [--compile]

Greedy, float32, random weights; the contenders take turns and the median round counts. With `--threads 1` all times are
the thread's processor time. transformers comes twice: `generate` pads the prompts of one batch that starts and ends
together, `continuous` is its own continuous batching (`generate_batch`), with a cache of bounded size, since by default
it takes all of a machine's memory. Prompts share their first 128 tokens or nothing; the prompt's time is part of the
round. The limit is what the machine's memory allows: the weights once per step and the keys and values of the past
once per token, at the speed at which both threads read, measured in the same run. The first token of a short request
is timed while a prompt of 1024 tokens comes in just before it. The overhead is the time of a step outside the model's
forward pass, as a share of the step. On a CUDA device weights are bfloat16, the engine runs with and without recorded
steps (and compiled ones with `--compile`), and decoding is timed apart from the prompts. The last line is the whole
table as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from importlib.util import find_spec
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
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Those of llama2.c's stories15M, of SmolLM2-135M, and of Llama 3 with 1 and 8 billion, but for their vocabularies."""

KV_HEADS = {"15m": 6, "135m": 3, "1b": 8, "8b": 8}
PROMPT, SHARED = 160, 128

PEERS = ("generate", "continuous")
"""Contenders that are transformers'."""

CLOCK = time.perf_counter
"""With one thread, its processor time, which other work on the machine disturbs less."""

Serve: TypeAlias = "Callable[[list[list[int]], int], object]"
"""Prompts and a number of new tokens each."""


def new_model(shape: str, device: str) -> Llama:
    config = LlamaConfig(
        vocab_size=32000,
        max_position_embeddings=2048,
        num_key_value_heads=KV_HEADS[shape],
        tie_word_embeddings=True,
        **SHAPES[shape],
    )
    if device == "cpu":
        ours = Llama.from_config(config)
        ours.initialize(seed=0)
        return ours
    with torch.device("meta"):
        ours = Llama.from_config(config).bfloat16()
    ours = ours.to_empty(device=device)
    for name, parameter in ours.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    return ours


def new_peer(ours: Llama) -> LlamaForCausalLM:
    import transformers

    transformers.logging.set_verbosity_error()
    weight = ours.output_matrix.dense()
    with weight.device:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ours.config.to_hf())).to(weight.dtype).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    return theirs


def prompts_of(num: int, shared: bool, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 32000, (num, PROMPT), generator=generator)
    if shared:
        ids[:, :SHARED] = ids[0, :SHARED].clone()
    return [row.tolist() for row in ids]


def serve_with_camelid(model: Llama) -> Serve:
    # A new engine for each round: nothing is left over from the round before.
    return lambda prompts, num: Engine(model).generate(prompts, SamplingParams(max_tokens=num, ignore_eos=True))


def serve_with_one_engine(model: Llama, **options: bool) -> Serve:
    """What is recorded or compiled is kept between rounds; prompts are new in each."""
    engine = Engine(model, **options)
    return lambda prompts, num: engine.generate(prompts, SamplingParams(max_tokens=num, ignore_eos=True))


@torch.inference_mode()
def serve_with_generate(model: LlamaForCausalLM) -> Serve:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def serve(prompts: list[list[int]], num: int) -> object:
        ids = torch.tensor(prompts, device=model.device)
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


def bytes_per_second(device: str) -> float:
    """How fast memory is read, on a CPU by all threads together: the best of several sums over half a gigabyte."""
    block = torch.ones(2**27, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        float(block.sum())
        times.append(time.perf_counter() - start)
    return block.nbytes / min(times)


def memory_limit(model: Llama, streams: int, num: int, speed: float) -> float:
    """Tokens per second of decoding alone, if nothing but reading weights and past took time."""
    size = next(model.parameters()).element_size()
    weights = sum(p.numel() for p in model.parameters()) * size
    past = model.config.kv_elements_per_token * size * (PROMPT + num / 2)
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


def decoding(model: Llama, streams: int, num: int, **options: bool) -> float:
    """Median milliseconds of a step in which all streams decode; what is recorded or compiled is so before."""
    engine = Engine(model, **options)
    for prompt in prompts_of(streams, False, 0):
        engine.add(prompt, SamplingParams(max_tokens=num + 20, ignore_eos=True))
    times = []
    for _ in range(num + 10):
        start = CLOCK()
        engine.step()
        times.append(CLOCK() - start)
    return statistics.median(times[10:]) * 1e3


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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="on a CUDA device, add compiled steps")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if torch.get_num_threads() == 1 and arguments.device == "cpu":
        global CLOCK
        CLOCK = time.thread_time

    ours = new_model(arguments.shape, arguments.device)
    contenders = {"camelid": serve_with_camelid(ours)}
    variants: dict[str, dict[str, bool]] = {}
    if arguments.device != "cpu":
        variants = {"plain": {}, "graphs": {"decode_graphs": True}}
        if arguments.compile:
            variants["compiled"] = {"decode_graphs": True, "compile": True}
        contenders = {name: serve_with_one_engine(ours, **options) for name, options in variants.items()}
    if find_spec("transformers"):
        theirs = new_peer(ours)
        contenders["generate"] = serve_with_generate(theirs)
        if CLOCK is time.perf_counter:  # it works in a thread of its own, whose processor time would not be seen
            contenders["continuous"] = serve_with_continuous_batching(theirs)
    else:
        print("transformers is not installed: nothing to compare with")
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    speed = bytes_per_second(arguments.device)
    result: dict[str, object] = {"name": "engine", "shape": arguments.shape, "where": where}
    print(f"{arguments.shape}, {where}, prompts of {PROMPT}, {arguments.tokens} new tokens")
    print(f"{'tokens/s':24}" + "".join(f"{name:>14}" for name in (*contenders, "ratio", "limit")))
    for streams in arguments.streams:
        for shared in (False, True):
            rates = throughput(contenders, streams, shared, arguments.tokens, arguments.rounds)
            label = f"{streams} streams, {'shared' if shared else 'distinct'}"
            ours_best, theirs_best = (
                max((rate for name, rate in rates.items() if (name in PEERS) == is_peer), default=math.nan)
                for is_peer in (False, True)
            )
            rates["ratio"] = ours_best / theirs_best
            rates["limit"] = memory_limit(ours, streams, arguments.tokens, speed)
            print(f"{label:24}" + "".join(f"{rate:14.2f}" for rate in rates.values()))
            result[label] = {name: round(rate, 2) for name, rate in rates.items()}
    for streams in arguments.streams if variants else ():
        times = {name: decoding(ours, streams, arguments.tokens, **options) for name, options in variants.items()}
        label = f"{streams} streams, ms a step"
        print(f"{label:24}" + "".join(f"{milliseconds:14.2f}" for milliseconds in times.values()))
        result[label] = {name: round(milliseconds, 3) for name, milliseconds in times.items()}
    waits = first_token_beside_a_long_prompt(ours, arguments.rounds)
    costs = {} if variants else overhead(ours, 8, 60)  # a device's work goes on outside the forward pass
    for name, value in {**waits, **costs}.items():
        print(f"{name:24}{value:14.3f}")
        result[name] = round(value, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
