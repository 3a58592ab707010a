"""How fast camelid decodes and prefills: packed and dense weights, against transformers on the same dense weights.

    python benchmarks/decode.py [--model NAME] [--tokens 64] [--prefill 512] [--rounds 5]

Greedy, float32, the threads that torch has. The three take turns, and the best round of each counts. A decoding round
is timed from the first new token to the last, so that the prompt's own time stays out. The limit is what the memory's
read bandwidth, measured in the same run, allows if every weight is read once per step. The last line is camelid as it
comes, with packed weights, against the peer; the line before it compares dense with dense.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

import camelid
from camelid.engine.params import SamplingParams
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import LlamaForCausalLM

    from camelid.llm import LLM

TEXT = "The history of the camel family begins in North America, some forty million years ago, when "
NUM_SEQUENCES = 8
"""In the batch."""

Decode: TypeAlias = "Callable[[list[list[int]], int], tuple[float, list[list[int]]]]"
"""Prompts and a number of new tokens → seconds from the first new token to the last, and the replies."""


def read_bandwidth() -> float:
    """Bytes per second that all threads together read from memory, far past the size of any cache."""
    data = torch.ones(2**28)
    best = 0.0
    for _ in range(7):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def bytes_per_step(model: nn.Module) -> int:
    """Bytes of the weights that one step reads: a tied embedding once, an untied one hardly at all."""
    matrices = [module for module in model.modules() if isinstance(module, Matrix)]
    packed = sum(module.packed.data.nbytes for module in matrices if module.packed)
    dense = sum(parameter.nbytes for parameter in model.parameters())
    embedding = model.get_submodule("model.embed_tokens")
    if not model.config.tie_word_embeddings and isinstance(embedding, Matrix):
        dense -= embedding.weight.nbytes if embedding.weight is not None else 0
        packed -= embedding.packed.data.nbytes if embedding.packed else 0
    return packed + dense


def decode_with_camelid(llm: LLM) -> Decode:
    def decode(prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
        times: list[float] = []
        llm.engine.on_step = lambda _: times.append(time.perf_counter())
        completions = llm.engine.generate(prompts, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
        llm.engine.on_step = None
        return times[-1] - times[-num_tokens], [completion.token_ids for completion in completions]

    return decode


class Clock:
    """A streamer that notes when `generate` hands over tokens: the prompt's first, then each step's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: object) -> None:
        """Take the next token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Take the end of the reply."""


def decode_with_transformers(model: LlamaForCausalLM) -> Decode:
    @torch.inference_mode()
    def decode(prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
        clock = Clock() if len(prompts) == 1 else None
        ids = torch.tensor(prompts)
        settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        if clock is not None:
            out = model.generate(ids, max_new_tokens=num_tokens, streamer=clock, **settings)
            seconds = clock.times[-1] - clock.times[1]
        else:  # transformers streams single sequences only: take the time of the prompt and one token off
            model.generate(ids, max_new_tokens=1, **settings)
            start = time.perf_counter()
            model.generate(ids, max_new_tokens=1, **settings)
            first = time.perf_counter() - start
            start = time.perf_counter()
            out = model.generate(ids, max_new_tokens=num_tokens, **settings)
            seconds = time.perf_counter() - start - first
        return seconds, out[:, ids.shape[1] :].tolist()

    return decode


def transformers_model(llm: LLM) -> LlamaForCausalLM:
    """Its Llama over the very tensors of ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llm.model.config.to_hf()))
    weights = llm.model.state_dict()
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def best_rates(
    runs: dict[str, Decode], prompts: list[list[int]], num_tokens: int, rounds: int
) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    """Tokens per second of all sequences together, and the replies."""
    rates, replies = dict.fromkeys(runs, 0.0), {}
    for _ in range(rounds):
        for name, decode in runs.items():
            seconds, replies[name] = decode(prompts, num_tokens)
            rates[name] = max(rates[name], len(prompts) * (num_tokens - 1) / seconds)
    return rates, replies


def prefill_rates(packed: LLM, dense: LLM, peer: LlamaForCausalLM, ids: list[int], rounds: int) -> dict[str, float]:
    @torch.inference_mode()
    def run_peer() -> None:
        peer(torch.tensor([ids]), logits_to_keep=1)

    salt = 0

    def read(llm: LLM) -> None:
        # Another salt each time: the engine would not read again what it remembers.
        llm.engine.generate([ids], SamplingParams(max_tokens=1, cache_salt=str(salt)))

    runs: dict[str, Callable[[], object]] = {
        "camelid, packed": lambda: read(packed),
        "camelid, dense": lambda: read(dense),
        "transformers": run_peer,
    }
    rates = dict.fromkeys(runs, 0.0)
    for salt in range(rounds):  # noqa: B007 — `read` takes it
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name] = max(rates[name], len(ids) / (time.perf_counter() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    packed, dense = (camelid.load(arguments.model, device="cpu", dtype="float32", packed=p) for p in (True, False))
    peer = transformers_model(dense)
    runs = {
        "camelid, packed": decode_with_camelid(packed),
        "camelid, dense": decode_with_camelid(dense),
        "transformers": decode_with_transformers(peer),
    }
    prompt = packed.tokenizer.encode(TEXT)
    bandwidth = read_bandwidth()
    alone, replies = best_rates(runs, [prompt], arguments.tokens, arguments.rounds)
    if replies["camelid, dense"] != replies["transformers"]:
        sys.exit("the two implementations give other tokens on the same weights")
    prompts = [[*prompt[:-1], token] for token in range(100, 100 + NUM_SEQUENCES)]
    together, _ = best_rates(runs, prompts, arguments.tokens, arguments.rounds)
    ids = (packed.tokenizer.encode(TEXT) * arguments.prefill)[: arguments.prefill]
    prefill = prefill_rates(packed, dense, peer, ids, arguments.rounds)
    bandwidth = max(bandwidth, read_bandwidth())

    limits = {name: bandwidth / bytes_per_step(packed.model if "packed" in name else dense.model) for name in runs}
    print(f"{arguments.model}, {torch.get_num_threads()} threads, memory reads {bandwidth / 1e9:.1f} GB/s; tokens/s")
    print(f"{'':16}{'batch 1':>10}{'of limit':>10}{f'batch {NUM_SEQUENCES}':>10}{f'prefill {len(ids)}':>13}")
    for name in runs:
        share = alone[name] / limits[name]
        print(f"{name:16}{alone[name]:10.1f}{share:10.0%}{together[name]:10.1f}{prefill[name]:13.0f}")
    for name, ours in (("decode_dense_tokens_per_s", "camelid, dense"), ("decode_tokens_per_s", "camelid, packed")):
        result = {
            "name": name,
            "ours": round(alone[ours], 2),
            "peer": round(alone["transformers"], 2),
            "ratio": round(alone[ours] / alone["transformers"], 3),
            "limit": round(limits[ours], 2),
            "share_of_limit": round(alone[ours] / limits[ours], 3),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
