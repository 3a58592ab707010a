"""Products of few rows with a weight in fp32, as decoding makes them: ours against torch's.

    python benchmarks/few_rows.py [--rows 1 4 8 16 48] [--threads 1]

Each weight is one of so many that together they do not fit into the processor's caches, as in a model; the two take
turns, the best of several passes counts. With one thread times are its processor time. The limit is the weights' bytes
at the speed at which memory is read, or the rows' arithmetic at the speed of a large product, whichever is slower. The
last line is the whole table as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from camelid.kernels.product import linear, product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

SHAPES = [(32000, 288), (768, 288), (49152, 576), (1536, 576), (2048, 2048), (8192, 2048)]
"""Outputs and inputs: heads and feed-forward layers of the 15M and 135M shapes, and projections of a 1B."""

BYTES = 200_000_000


def multiply(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> None:
    """With each of the weights."""
    for weight in weights:
        product(x, weight)


def best(runs: Mapping[str, Callable[[], object]], clock: Callable[[], float], passes: int) -> dict[str, float]:
    """Seconds of the best pass."""
    times = dict.fromkeys(runs, float("inf"))
    for _ in range(passes):
        for name, run in runs.items():
            start = clock()
            run()
            times[name] = min(times[name], clock() - start)
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 48])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter

    block, a, b = torch.ones(2**27), torch.randn(512, 768), torch.randn(768, 2048)
    speeds = best({"read": lambda: block.sum(), "multiply": lambda: product(a, b)}, clock, passes=8)
    bytes_per_s, flops = block.nbytes / speeds["read"], 2 * 512 * 768 * 2048 / speeds["multiply"]
    print(
        f"{arguments.threads} threads: memory {bytes_per_s / 1e9:.1f} GB/s, a large product {flops / 1e9:.0f} GFLOP/s"
    )
    print(f"{'GFLOP/s':24}{'camelid':>10}{'torch':>10}{'ratio':>10}{'limit':>10}")
    result: dict[str, object] = {"name": "few_rows", "threads": arguments.threads}
    for outputs, inputs in SHAPES:
        weights = [torch.randn(outputs, inputs) for _ in range(max(BYTES // (4 * outputs * inputs), 1))]
        for rows in arguments.rows:
            x = torch.randn(rows, inputs)
            torch.testing.assert_close(linear(x, weights[0]), F.linear(x, weights[0]), rtol=1e-3, atol=1e-3)
            runs = {"camelid": partial(multiply, linear, x, weights), "torch": partial(multiply, F.linear, x, weights)}
            times = best(runs, clock, passes=5)
            work = 2 * rows * outputs * inputs
            rates = {name: work * len(weights) / seconds / 1e9 for name, seconds in times.items()}
            rates["ratio"] = rates["camelid"] / rates["torch"]
            rates["limit"] = min(work / (4 * outputs * inputs) * bytes_per_s, flops) / 1e9
            label = f"{outputs} × {inputs}, {rows} rows"
            print(f"{label:24}" + "".join(f"{rate:10.2f}" for rate in rates.values()))
            result[label] = {name: round(rate, 2) for name, rate in rates.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
