"""camelid's encoders against ggml's on the same float32 weights: error by ggml's own measure, plain error, KL on text.

    python benchmarks/llama_cpp_quantizers.py MODEL [--formats q4_k q6_k] [--mixtures q4_k_m] [--windows 2]

Formats: every matrix of the model is packed by both encoders, in rows of 256, and unpacked by the same code. ggml's
measure is what its encoder minimises (ggml-quants.c): squared errors, weighted by the weight's magnitude and its
sub-block's in Q4_K and Q5_K, by its square in Q3_K and Q6_K; weighted absolute errors in Q2_K; plain squares elsewhere.
KL is that of the model with these weights from the model with its own, over the beginning of a text.

Mixtures: the file that camelid writes against the one that llama.cpp's quantiser makes of camelid's float32 file: the
type of every tensor, the bytes, and the KL of both.

The last column of each table is ours divided by theirs: below 1, ours is better. llama.cpp comes as `llama_cpp_peer`
says. The last line is the formats' worst ratio of KL.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp_peer
import torch
from llama_cpp_parity import TEXT, kl, logits_by_camelid, text_windows

import camelid
from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint.catalogue import resolve
from camelid.checkpoint.conversion import convert
from camelid.checkpoint.gguf_mix import MIXES
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from camelid.llm import LLM

FORMAT_NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
MIXTURE_NAMES = ("q2_k", "q3_k_m", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
BLOCK = 256


def by_magnitude(x_NS: Tensor, error_NS: Tensor) -> Tensor:
    groups_NS = x_NS.reshape(-1, 32)
    weights_NS = groups_NS.abs() + groups_NS.square().mean(1, keepdim=True).sqrt()
    return (weights_NS * error_NS.reshape(-1, 32).square()).sum(dtype=torch.float64)


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "q2_k": lambda x, error: (x.abs() * error.abs()).sum(dtype=torch.float64),
    "q3_k": lambda x, error: (x * error).square().sum(dtype=torch.float64),
    "q4_k": by_magnitude,
    "q5_k": by_magnitude,
    "q6_k": lambda x, error: (x * error).square().sum(dtype=torch.float64),
}


def plain(_: Tensor, error: Tensor) -> Tensor:
    return error.square().sum(dtype=torch.float64)


def matrices(llm: LLM) -> dict[str, Tensor]:
    """Weights with two dimensions and whole blocks."""
    parameters = dict(llm.model.named_parameters())
    return {name: one.data for name, one in parameters.items() if one.ndim == 2 and one.numel() % BLOCK == 0}


def packed_by(format: str, encode: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """The matrix after a trip through the format."""
    rows = matrix.reshape(-1, BLOCK)
    return FORMATS.load(format).unpack(PackedTensor(encode(rows), format, tuple(rows.shape))).reshape(matrix.shape)


def compare_formats(llm: LLM, windows: Sequence[Sequence[int]], formats: Sequence[str]) -> float:
    """Print a row for each format; the worst ratio of KL."""
    weights = {name: matrix.clone() for name, matrix in matrices(llm).items()}
    reference = [llm.logits(ids).clone() for ids in windows]
    print(f"{'':8}{'measure':>9}{'RMSE ours':>12}{'ggml':>12}{'ratio':>8}{'KL ours':>12}{'ggml':>12}{'ratio':>8}")
    worst = 0.0
    for format in formats:
        codec = FORMATS.load(format)
        encoders: list[Callable[[Tensor], Tensor]] = [
            lambda rows, codec=codec: codec.pack(rows).data,
            lambda rows, format=format: llama_cpp_peer.pack(rows, format),
        ]
        measured, errors, divergences = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        for who, encode in enumerate(encoders):
            for name, matrix in weights.items():
                back = packed_by(format, encode, matrix)
                difference = back - matrix
                measured[who] += float(MEASURES.get(format, plain)(matrix, difference))
                errors[who] += float(plain(matrix, difference))
                llm.model.get_parameter(name).data.copy_(back)
            divergences[who] = kl(reference, [llm.logits(ids) for ids in windows])
        total = sum(matrix.numel() for matrix in weights.values())
        ours, theirs = ((error / total) ** 0.5 for error in errors)
        worst = max(worst, divergences[0] / divergences[1])
        left = f"{format:8}{measured[0] / measured[1]:9.4f}{ours:12.3e}{theirs:12.3e}{ours / theirs:8.4f}"
        print(
            f"{left}{divergences[0]:12.3e}{divergences[1]:12.3e}{divergences[0] / divergences[1]:8.3f}",
            flush=True,
        )
    for name, matrix in weights.items():
        llm.model.get_parameter(name).data.copy_(matrix)
    return worst


def compare_mixtures(source: Path, windows: Sequence[Sequence[int]], mixtures: Sequence[str], folder: Path) -> None:
    """Print a row for each mixture."""
    whole = folder / "f32.gguf"
    convert(source, whole, to="gguf", dtype="float32")
    reference = logits_by_camelid(whole, windows)
    print(f"{'':8}{'MB':>8}{'tensor types':>16}{'KL ours':>12}{'llama.cpp':>12}{'ratio':>8}")
    for name in mixtures:
        ours, theirs = folder / f"{name}.ours.gguf", folder / f"{name}.theirs.gguf"
        convert(whole, ours, to="gguf", quantize=name)
        llama_cpp_peer.quantize(whole, theirs, MIXES[name].file_type)
        types = [{n: one.type_name for n, one in read_gguf_header(path).tensors.items()} for path in (ours, theirs)]
        differ = sum(types[0].get(n) != types[1].get(n) for n in types[0].keys() | types[1].keys())
        found = [kl(reference, logits_by_camelid(path, windows)) for path in (ours, theirs)]
        same = f"{differ} differ" if differ else f"all {len(types[0])} equal"
        print(
            f"{name:8}{ours.stat().st_size / 1e6:8.1f}{same:>16}{found[0]:12.3e}{found[1]:12.3e}"
            f"{found[0] / found[1]:8.3f}",
            flush=True,
        )
        ours.unlink()
        theirs.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--formats", nargs="*", default=list(FORMAT_NAMES))
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURE_NAMES))
    parser.add_argument("--text", type=Path, default=TEXT, help="what the KL divergence is measured on")
    parser.add_argument("--windows", type=int, default=2)
    options = parser.parse_args()
    llm = camelid.load(options.model, device="cpu", dtype="float32", packed=False)
    special = llm.tokenizer.special
    bos = special.bos if special.add_bos else None
    windows = text_windows(options.text, llm.tokenizer, bos, options.windows, llm.context_length)
    worst = compare_formats(llm, windows, options.formats) if options.formats else None
    del llm
    if options.mixtures:
        with tempfile.TemporaryDirectory() as scratch:
            compare_mixtures(resolve(options.model), windows, options.mixtures, Path(scratch))
    if worst is not None:
        print(
            json.dumps({"name": "quantiser_kl_worst", "ours": round(worst, 4), "peer": 1.0, "ratio": round(worst, 4)})
        )


if __name__ == "__main__":
    main()
