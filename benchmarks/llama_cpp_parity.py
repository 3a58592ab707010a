"""Is a model that camelid writes the same model in transformers and in llama.cpp? Real weights, greedy text, KL.

    python benchmarks/llama_cpp_parity.py [--model smollm2-135m-instruct] [--tokens 64] [--stories stories15M.bin]

The model becomes a Hugging Face folder and GGUF files in float32, float16 and quantised. From the folder and the
float32 file camelid, transformers and llama.cpp continue ten prompts greedily: the tokens must be the same. From the
other files they may differ, since llama.cpp rounds activations to the precision of the weights they meet (to half
precision for float16, to 8 bits in blocks for quantised ones) and camelid keeps them in float32: for these, where the
first continuation parts and the KL divergence on a text, of llama.cpp from camelid and of both from the float32 model.

transformers opens every one of the GGUF files as well and unpacks it, so its greedy tokens must be camelid's from the
same file. How many texts its tokenizer cuts alike is told beside: it reads SentencePiece vocabularies in its own way.

`--stories` takes llama2.c's .bin, which needs Llama 2's tokenizer.model beside it, through all formats and back.
llama.cpp comes as `llama_cpp_peer` says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp_peer
import torch
import transformers

import camelid
from camelid.checkpoint import open_checkpoint
from camelid.checkpoint.catalogue import resolve
from camelid.checkpoint.conversion import convert
from camelid.codecs import FORMATS
from camelid.codecs.packed import PackedTensor
from camelid.data.compression import compression_of, open_binary
from camelid.engine.params import SamplingParams
from camelid.evaluate.verify import TEXTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from camelid.tokenizer import Tokenizer

TEXT = Path(__file__).parents[1] / "texts" / "yardsticks" / "book.jsonl"
"""A book, as one line of JSON; `stories.jsonl` beside it is what the stories models can read."""
PROMPT_TOKENS = 8
WINDOW = 512
"""Tokens of the book that are scored together."""

FILES = {
    "f32": {"dtype": "float32"},
    "f16": {"dtype": "float16"},
    "q8_0": {"quantize": "q8_0"},
    "q4_k_m": {"quantize": "q4_k_m"},
}


def greedy_by_camelid(path: Path, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    llm = camelid.load(path, device="cpu", dtype="float32", packed=False)
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    return [reply.token_ids for reply in llm.engine.generate([list(ids) for ids in prompts], params)]


def named(path: Path) -> dict[str, str]:
    """A folder or a GGUF file as transformers' `from_pretrained` wants it said."""
    place, file = "pretrained_model_name_or_path", {"gguf_file": path.name}
    return {place: str(path)} if path.is_dir() else {place: str(path.parent), **file}


@torch.inference_mode()
def greedy_by_transformers(path: Path, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(**named(path), dtype=torch.float32).eval()
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": num_tokens}
    input_ids = torch.tensor(prompts)
    out = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **settings)
    return [row[len(ids) :] for ids, row in zip(prompts, out.tolist(), strict=True)]


def read_alike_in_transformers(path: Path) -> str:
    """How many of the texts, and of one conversation of them, transformers cuts into the same tokens as camelid."""
    llm = camelid.load(path, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(**named(path))
    texts = sum(tokenizer(text)["input_ids"] == llm.encode_prompt(text) for text in TEXTS)
    said = f"{texts} of {len(TEXTS)} texts"
    if llm.chat_template is None:
        return said
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(TEXTS[:5])]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    return f"{said}, {int(ids == llm.encode_prompt(chat))} of 1 conversations"


def choices_of_llama_cpp(
    path: Path, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> list[list[int]]:
    """llama.cpp's likeliest token after each prefix of the replies: up to the first that differs, its greedy text."""
    with closing(llama_cpp_peer.LlamaCpp(path)) as peer:
        return [
            peer.logits([*ids, *reply[:-1]])[len(ids) - 1 :].argmax(-1).tolist()
            for ids, reply in zip(prompts, replies, strict=True)
        ]


def first_difference(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> tuple[int, int | None]:
    """How many continuations differ, and after how many tokens the first one does."""
    places = [
        next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
        for left, right in zip(one, other, strict=True)
    ]
    found = [place for place in places if place is not None]
    return len(found), min(found, default=None)


def told(difference: tuple[int, int | None], total: int) -> str:
    count, place = difference
    return "the same" if place is None else f"{count} of {total} differ, the first after {place}"


def kl(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Mean KL(one ‖ other) of the next token, in nats."""
    total = count = 0.0
    for one_SV, other_SV in zip(one, other, strict=True):
        logs = one_SV.float().log_softmax(-1), other_SV.float().log_softmax(-1)
        total += float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).clamp_min(0).sum(dtype=torch.float64))
        count += len(one_SV)
    return total / count


def text_windows(file: Path, tokenizer: Tokenizer, bos: int | None, count: int, context: int) -> list[list[int]]:
    """The first whole windows of a file of texts, each after a begin-of-sequence token where the model wants one."""
    width = min(WINDOW, context) - (bos is not None)
    texts: list[str] = []
    with open_binary(file, compression_of(file)) as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            if sum(map(len, texts)) > 10 * count * width:
                break
    ids = tokenizer.encode("\n\n".join(texts))
    windows = [ids[i * width : (i + 1) * width] for i in range(min(count, len(ids) // width))]
    return windows if bos is None else [[bos, *window] for window in windows]


def logits_by_camelid(path: Path, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    llm = camelid.load(path, device="cpu", dtype="float32", packed=False)
    return [llm.logits(ids).float().clone() for ids in windows]


def logits_by_llama_cpp(path: Path, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    with closing(llama_cpp_peer.LlamaCpp(path)) as peer:
        return [peer.logits(ids).float().clone() for ids in windows]


def compare_model(source: Path, folder: Path, text: Path, num_tokens: int, num_windows: int) -> bool:
    """Print the table of one model; whether every implementation says the same from unrounded weights."""
    hf = folder / "hf"
    convert(source, hf, to="huggingface")
    files = {name: folder / f"{name}.gguf" for name in FILES}
    for name, path in files.items():
        convert(hf, path, to="gguf", **FILES[name])  # type: ignore[arg-type]
    llm = camelid.load(hf, device="cpu")
    bos = llm.tokenizer.special.bos if llm.tokenizer.special.add_bos else None
    prompts = [llm.encode_prompt(text)[:PROMPT_TOKENS] for text in TEXTS]
    windows = text_windows(text, llm.tokenizer, bos, num_windows, llm.context_length)
    del llm

    expected = greedy_by_transformers(hf, prompts, num_tokens)
    runs = {
        "camelid, Hugging Face folder": greedy_by_camelid(hf, prompts, num_tokens),
        "camelid, f32.gguf": greedy_by_camelid(files["f32"], prompts, num_tokens),
        "llama.cpp, f32.gguf": choices_of_llama_cpp(files["f32"], prompts, expected),
    }
    print(f"{len(prompts)} greedy continuations of {num_tokens} tokens, against transformers on the folder")
    differences = {name: first_difference(expected, run) for name, run in runs.items()}
    for name, difference in differences.items():
        print(f"  {name:30}{told(difference, len(prompts))}")

    print(
        f"each file in camelid and in llama.cpp; KL over {sum(map(len, windows))} tokens of {text.name}, nats per token"
    )
    print(f"  {'':8}{'MB':>7}{'camelid | llama.cpp':>24}{'f32 | camelid':>16}{'f32 | llama.cpp':>18}  greedy")
    good = all(count == 0 for count, _ in differences.values())
    reference = logits_by_camelid(files["f32"], windows)
    for name, path in files.items():
        ours, theirs = logits_by_camelid(path, windows), logits_by_llama_cpp(path, windows)
        replies = greedy_by_camelid(path, prompts, num_tokens)
        greedy = first_difference(replies, choices_of_llama_cpp(path, prompts, replies))
        columns = f"{kl(ours, theirs):24.2e}{kl(reference, ours):16.2e}{kl(reference, theirs):18.2e}"
        print(f"  {name:8}{path.stat().st_size / 1e6:7.0f}{columns}  {told(greedy, len(prompts))}", flush=True)
        theirs_of_file = first_difference(replies, greedy_by_transformers(path, prompts, num_tokens))
        good &= theirs_of_file[0] == 0
        what = f"greedy {told(theirs_of_file, len(prompts))}; the same ids: {read_alike_in_transformers(path)}"
        print(f"  {'':8}in transformers: {what}", flush=True)
    return good


def dense(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint as float32."""
    with closing(open_checkpoint(path)) as checkpoint:
        values = {name: checkpoint.read(name) for name in checkpoint.tensors}
        return {
            name: FORMATS.load(value.format).unpack(value) if isinstance(value, PackedTensor) else value.float()
            for name, value in values.items()
        }


def compare_round_trip(source: Path, folder: Path) -> bool:
    """.bin → Hugging Face → Meta → GGUF → Hugging Face: whether every weight comes back bit for bit."""
    stages = [("huggingface", "hf1"), ("meta", "meta"), ("gguf", "f32.gguf"), ("huggingface", "hf2")]
    original, previous, same = dense(source), source, True
    print("every weight, bit for bit, along " + " → ".join([source.name, *(to for to, _ in stages)]))
    for to, name in stages:
        convert(previous, folder / name, to=to)
        previous = folder / name
        copy = dense(previous)
        equal = copy.keys() == original.keys() and all(torch.equal(copy[key], original[key]) for key in original)
        print(f"  {to:14}{'the same' if equal else 'DIFFERENT'}")
        same &= equal
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT, help="what the KL divergence is measured on")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--windows", type=int, default=2, help=f"of {WINDOW} tokens for the KL divergence")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    good = True
    sources = [resolve(options.model), *([options.stories] if options.stories else [])]
    for source in sources:
        print(f"\n{source.name}")
        with tempfile.TemporaryDirectory() as scratch:
            good &= compare_model(source, Path(scratch), options.text, options.tokens, options.windows)
        if source == options.stories:
            with tempfile.TemporaryDirectory() as scratch:
                good &= compare_round_trip(source, Path(scratch))
    if not good:
        sys.exit("the implementations disagree where nothing was rounded")


if __name__ == "__main__":
    main()
