"""camelid's encoders against ggml's on the same float32 weights: error by ggml's own measure, plain error, KL on text.

    python benchmarks/llama_cpp_quantizers.py MODEL [--formats q4_k q6_k] [--mixtures q4_k_m] [--windows 2]

Formats: every matrix of the model is packed by both encoders, in rows of 256, and unpacked by the same code. ggml's
measure is what its encoder minimises (ggml-quants.c): squared errors, weighted by the weight's magnitude and its
sub-block's in Q4_K and Q5_K, by its square in Q3_K, Q6_K and IQ4_NL; weighted absolute errors in Q2_K; plain squares
elsewhere. KL is that of the model with these weights from the model with its own, over the beginning of a text. A file
has formats with blocks of 256 only where rows are whole blocks; the first line says for how many matrices that holds.

Mixtures: the file that camelid writes against the one that llama.cpp's quantiser makes of camelid's float32 file: the
type of every tensor, the bytes, and the KL of both.

The last columns of each table are ours divided by theirs, below 1 where ours is better, and the interval that 95 of 100
draws of the text's windows, with replacement, leave it in. llama.cpp comes as `llama_cpp_peer` says. The last line is
the formats' worst ratio of KL.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp_peer
import torch
from llama_cpp_parity import TEXT, kl, text_windows

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

FORMAT_NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl")
MIXTURE_NAMES = ("q2_k", "q3_k_m", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
BLOCK = 256
DRAWS = 10_000
"""Of a text's windows, for the interval of a ratio."""


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
    "iq4_nl": lambda x, error: (x * error).square().sum(dtype=torch.float64),
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


def divergences(reference: LLM, changed: LLM, windows: Sequence[Sequence[int]]) -> Tensor:
    """KL of one model from another in each window, nats per token, float64 [W]."""
    found = [kl([reference.logits(ids).clone()], [changed.logits(ids)]) for ids in windows]
    return torch.tensor(found, dtype=torch.float64)


def compared(ours_W: Tensor, theirs_W: Tensor) -> tuple[float, str]:
    """The ratio of the means, and columns that tell both means, the ratio and how far it moves with the text."""
    count = len(ours_W)
    draws_DW = torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    ratios_D = ours_W[draws_DW].mean(1) / theirs_W[draws_DW].mean(1)
    low, high = ratios_D.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    ours, theirs = float(ours_W.mean()), float(theirs_W.mean())
    return ours / theirs, f"{ours:12.3e}{theirs:12.3e}{ours / theirs:8.3f}  {low:.3f} to {high:.3f}"


KL_HEADING = f"{'KL ours':>12}{'llama.cpp':>12}{'ratio':>8}  of 95%"


def compare_formats(reference: LLM, llm: LLM, windows: Sequence[Sequence[int]], formats: Sequence[str]) -> float:
    """Print a row for each format; the worst ratio of KL. The second model's weights are overwritten."""
    weights = matrices(reference)
    whole = sum(matrix.shape[-1] % BLOCK == 0 for matrix in weights.values())
    print(f"{len(weights)} matrices, {whole} of them with rows of whole blocks of {BLOCK}")
    print(f"{'':8}{'measure':>9}{'RMSE ours':>12}{'ggml':>12}{'ratio':>8}{KL_HEADING}")
    worst = 0.0
    for format in formats:
        codec = FORMATS.load(format)
        encoders: list[Callable[[Tensor], Tensor]] = [
            lambda rows, codec=codec: codec.pack(rows).data,
            lambda rows, format=format: llama_cpp_peer.pack(rows, format),
        ]
        measured, errors, found = [0.0, 0.0], [0.0, 0.0], []
        for who, encode in enumerate(encoders):
            for name, matrix in weights.items():
                back = packed_by(format, encode, matrix)
                difference = back - matrix
                measured[who] += float(MEASURES.get(format, plain)(matrix, difference))
                errors[who] += float(plain(matrix, difference))
                llm.model.get_parameter(name).data.copy_(back)
            found.append(divergences(reference, llm, windows))
        total = sum(matrix.numel() for matrix in weights.values())
        ours, theirs = ((error / total) ** 0.5 for error in errors)
        ratio, columns = compared(*found)
        worst = max(worst, ratio)
        left = f"{format:8}{measured[0] / measured[1]:9.4f}{ours:12.3e}{theirs:12.3e}{ours / theirs:8.4f}"
        print(f"{left}{columns}", flush=True)
    return worst


def compare_mixtures(source: Path, windows: Sequence[Sequence[int]], mixtures: Sequence[str], folder: Path) -> None:
    """Print a row for each mixture."""
    whole = folder / "f32.gguf"
    convert(source, whole, to="gguf", dtype="float32")
    reference = opened(whole)
    print(f"{'':8}{'MB':>8}{'tensor types':>16}{KL_HEADING}")
    for name in mixtures:
        ours, theirs = folder / f"{name}.ours.gguf", folder / f"{name}.theirs.gguf"
        convert(whole, ours, to="gguf", quantize=name)
        llama_cpp_peer.quantize(whole, theirs, MIXES[name].file_type)
        types = [{n: one.type_name for n, one in read_gguf_header(path).tensors.items()} for path in (ours, theirs)]
        differ = sum(types[0].get(n) != types[1].get(n) for n in types[0].keys() | types[1].keys())
        _, columns = compared(*(divergences(reference, opened(path), windows) for path in (ours, theirs)))
        same = f"{differ} differ" if differ else f"all {len(types[0])} equal"
        print(f"{name:8}{ours.stat().st_size / 1e6:8.1f}{same:>16}{columns}", flush=True)
        ours.unlink()
        theirs.unlink()


def opened(model: str | Path) -> LLM:
    """The model with its weights unpacked."""
    return camelid.load(model, device="cpu", dtype="float32", packed=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--formats", nargs="*", default=list(FORMAT_NAMES))
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURE_NAMES))
    parser.add_argument("--text", type=Path, default=TEXT, help="what the KL divergence is measured on")
    parser.add_argument("--windows", type=int, default=2)
    options = parser.parse_args()
    llm = opened(options.model)
    special = llm.tokenizer.special
    bos = special.bos if special.add_bos else None
    windows = text_windows(options.text, llm.tokenizer, bos, options.windows, llm.context_length)
    worst = compare_formats(opened(options.model), llm, windows, options.formats) if options.formats else None
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
