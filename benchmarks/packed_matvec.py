"""One token through every matrix of SmolLM2-135M: weights in blocks, as they lie in a GGUF file, against torch in fp32.

    OMP_WAIT_POLICY=passive python benchmarks/packed_matvec.py [--rounds 9] [--threads 1 2]

The matrices (211 of them, 135M weights, random) are far larger than the caches in either form, as in decoding. Both
sides take turns and the best round of each counts. The limit is what the memory would allow: the packed bytes at the
rate at which torch sums up 1 GB in the same run. OMP_WAIT_POLICY is what `camelid` itself sets: without it torch's
threads spin between products and, where cores are shared, hold up everybody.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from camelid import kernels
from camelid.codecs import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from camelid.codecs.packed import PackedTensor

LAYERS = 30
SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
HEAD = (49_152, 576)
HEAD_FORMAT = "q8_0"
FORMATS_OF_LAYERS = ("q4_1", "q4_0", "q8_0")
REFERENCE = "q4_1"
"""The format of the model's layers as published; the last line reports it, on all threads."""


def best_seconds(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """The shortest time of each run; they take turns, so that a busy moment hits all alike."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def memory_rate(rounds: int) -> float:
    """Bytes per second that the current number of threads can read from memory."""
    numbers = torch.ones(1 << 28)
    (seconds,) = best_seconds([numbers.sum], rounds)
    return numbers.nbytes / seconds


def random_model(name: str) -> list[PackedTensor]:
    shapes = [(name, shape) for _ in range(LAYERS) for shape in SHAPES] + [(HEAD_FORMAT, HEAD)]
    return [FORMATS.load(format).pack(torch.randn(shape)) for format, shape in shapes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    arguments = parser.parse_args()

    inputs = {columns: torch.randn(1, columns) for columns in (576, 1536)}
    rates = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rates[threads] = memory_rate(arguments.rounds)
    print(f"kernels: {kernels.instruction_set() or 'torch'}; memory read, GB/s: ", end="")
    print(", ".join(f"{rate / 1e9:.1f} on {threads} thread(s)" for threads, rate in rates.items()))
    print(f"{'layers':8}{'threads':>8}{'MB':>7}{'ms':>8}{'torch ms':>10}{'ratio':>7}{'GB/s':>7}{'of limit':>10}")

    result = {}
    for name in FORMATS_OF_LAYERS:
        packed = random_model(name)
        dense = [FORMATS.load(matrix.format).unpack(matrix) for matrix in packed]
        codecs = [FORMATS.load(matrix.format) for matrix in packed]
        num_bytes = sum(matrix.data.nbytes for matrix in packed)
        matrices = list(zip(codecs, packed, strict=True))

        def ours(matrices: list[tuple[object, PackedTensor]] = matrices) -> None:
            for codec, matrix in matrices:
                codec.matmul(inputs[matrix.shape[1]], matrix)

        def peer(dense: list[torch.Tensor] = dense) -> None:
            for weight in dense:
                F.linear(inputs[weight.shape[1]], weight)

        for threads in arguments.threads:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                our_seconds, peer_seconds = best_seconds([ours, peer], arguments.rounds)
            limit_seconds = num_bytes / rates[threads]
            ratio, share = peer_seconds / our_seconds, limit_seconds / our_seconds
            print(
                f"{name:8}{threads:8}{num_bytes / 1e6:7.0f}{our_seconds * 1e3:8.1f}{peer_seconds * 1e3:10.1f}"
                f"{ratio:7.2f}{num_bytes / our_seconds / 1e9:7.1f}{share:10.0%}"
            )
            if name == REFERENCE:
                result = {
                    "name": "packed_matvec_tokens_per_s",
                    "ours": round(1 / our_seconds, 2),
                    "peer": round(1 / peer_seconds, 2),
                    "ratio": round(ratio, 3),
                    "limit": round(1 / limit_seconds, 2),
                    "share_of_limit": round(share, 3),
                }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
