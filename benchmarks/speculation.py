"""What guessing ahead saves, on real weights: look-up and draft models against the plain engine, and transformers' own.

    python benchmarks/speculation.py [--model smollm2-135m-instruct] [--draft PATH] [--texts edit quote story]
                                     [--guesses 4] [--layers 10] [--tokens 64] [--rounds 3] [--threads 1]

Greedy, one stream, weights dense in float32. Three texts: a program to be written again with one name changed, a
passage to be quoted, a story. Who guesses:

- look-up: what followed the last tokens when they stood there before (transformers: `prompt_lookup_num_tokens`);
- layers: the target's own first layers with its norm and output matrix, untrained for that, since no smaller model of
  SmolLM2-135M's vocabulary is at hand (transformers: `assistant_model`, the same layers, a constant number of guesses);
- blocks: the target's own weights as the blocks of their file, where it has any: nearly always right, and cheaper by
  what the packed product is cheaper;
- `--draft`: another checkpoint of the same vocabulary.

Reported: guesses that were right, tokens per pass of the target, and processor time per token against the same library
without guesses (below 1 is faster). The prompt's pass is timed apart and taken off; a draft's own reading of the prompt
is not. Contenders take turns; medians count. The last line is all as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

import camelid
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.model.linear import Matrix
from camelid.model.llama import Llama

if TYPE_CHECKING:
    from collections.abc import Callable

    from camelid.engine.step import StepStats

PROGRAM = """def total_price(items, tax_rate):
    total = 0
    for item in items:
        price = item["price"]
        quantity = item["quantity"]
        total = total + price * quantity
    return total * (1 + tax_rate)


def print_receipt(items, tax_rate):
    for item in items:
        print(item["name"], item["quantity"], item["price"])
    print("Total:", total_price(items, tax_rate))
"""
PASSAGE = (
    "The llama is a domesticated animal of South America. People of the Andes have used llamas as a source of meat and "
    "as pack animals since before the Spanish came. Llamas live with others as a herd. Their wool is soft and holds "
    "only a small amount of lanolin. Llamas can learn simple tasks after a few repetitions. When they carry a pack, "
    "they can carry about a quarter of their own weight for eight to thirteen kilometres."
)
TEXTS = {
    "edit": f"Write this program again, with `total` renamed to `sum`. Give only the program.\n\n{PROGRAM}",
    "quote": f"Quote this text word for word:\n\n{PASSAGE}",
    "story": "Write a short story about a llama and a lighthouse.",
}


@dataclass(frozen=True)
class Run:
    """One reply."""

    seconds: float
    passes: int
    """Of the target, the prompt's among them."""
    reply: list[int]
    right: int = 0
    checked: int = 0


def clock() -> float:
    """The thread's processor time where one thread computes: other work on the machine disturbs it less."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def first_layers(model: Llama, count: int) -> Llama:
    """The model's own first layers, sharing its weights."""
    with torch.device("meta"):
        short = Llama.from_config(replace(model.config, num_hidden_layers=count))
    short.load_state_dict(model.state_dict(), strict=False, assign=True)
    return short.eval()


def serve_with_camelid(model: Llama, num_guesses: int, draft: Llama | None = None) -> Callable[[list[int], int], Run]:
    log: list[StepStats] = []

    def serve(prompt: list[int], num: int) -> Run:
        log.clear()
        # A new engine for each round: nothing is left over from the round before.
        engine = Engine(model, cache_tokens=1024, max_context=1024, num_drafts=num_guesses, draft_model=draft)
        engine.on_step = log.append
        start = clock()
        [completion] = engine.generate([prompt], SamplingParams(max_tokens=num, ignore_eos=True))
        seconds = clock() - start
        return Run(seconds, len(log), completion.token_ids, log[-1].num_accepted, log[-1].num_drafts)

    return serve


def serve_with_transformers(model: Any, settings: dict[str, Any]) -> Callable[[list[int], int], Run]:
    passes = [0]
    model.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))

    @torch.inference_mode()
    def serve(prompt: list[int], num: int) -> Run:
        ids = torch.tensor([prompt])
        passes[0] = 0
        start = clock()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **settings,
        )
        return Run(clock() - start, passes[0], out[0, len(prompt) :].tolist())

    return serve


def transformers_models(model: Llama, num_layers: int, num_guesses: int) -> tuple[Any, Any]:
    """The same weights in transformers, and its first layers as an assistant with a constant number of guesses."""
    import transformers

    transformers.logging.set_verbosity_error()
    models = []
    for source in (model, first_layers(model, num_layers)):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**source.config.to_hf())).eval()
        theirs.load_state_dict(source.state_dict(), strict=False)
        theirs.tie_weights()
        models.append(theirs)
    assistant = models[1].generation_config
    assistant.num_assistant_tokens, assistant.num_assistant_tokens_schedule = num_guesses, "constant"
    assistant.assistant_confidence_threshold = 0.0
    return models[0], models[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--draft", help="a checkpoint of the same vocabulary, to guess with")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--guesses", type=int, default=4)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-transformers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    llm = camelid.load(arguments.model, device="cpu", dtype="float32", packed=False)
    target, guesses = llm.model, arguments.guesses
    assert isinstance(target, Llama)
    contenders = {
        "plain": serve_with_camelid(target, 0),
        "look-up": serve_with_camelid(target, guesses),
        f"{arguments.layers} layers": serve_with_camelid(target, guesses, first_layers(target, arguments.layers)),
    }
    packed = camelid.load(arguments.model, device="cpu").model
    if any(isinstance(module, Matrix) and module.packed is not None for module in packed.modules()):
        contenders["blocks"] = serve_with_camelid(target, guesses, packed)
    if arguments.draft:
        contenders["draft"] = serve_with_camelid(target, guesses, camelid.load(arguments.draft, device="cpu").model)
    if not arguments.without_transformers:
        theirs, assistant = transformers_models(target, arguments.layers, guesses)
        contenders["transformers, plain"] = serve_with_transformers(theirs, {})
        contenders["transformers, look-up"] = serve_with_transformers(theirs, {"prompt_lookup_num_tokens": guesses})
        contenders[f"transformers, {arguments.layers} layers"] = serve_with_transformers(
            theirs, {"assistant_model": assistant}
        )

    print(f"{arguments.model}, {arguments.threads} threads, {guesses} guesses, {arguments.tokens} tokens")
    print(f"{'':36}{'right':>8}{'per pass':>10}{'ms/token':>10}{'ratio':>8}")
    results: dict[str, Any] = {"name": "speculation", "model": arguments.model, "guesses": guesses}
    for text in arguments.texts:
        prompt = llm.encode_prompt([{"role": "user", "content": TEXTS[text]}])
        runs: dict[str, list[Run]] = {name: [] for name in contenders}
        prompts: dict[str, list[float]] = {name: [] for name in contenders if name.endswith("plain")}
        for _ in range(arguments.rounds):
            for name, serve in contenders.items():
                if name in prompts:
                    prompts[name].append(serve(prompt, 1).seconds)
                runs[name].append(serve(prompt, arguments.tokens))
        plain = 0.0
        for name, rounds in runs.items():
            library = "transformers, plain" if name.startswith("transformers") else "plain"
            spent = statistics.median(run.seconds for run in rounds) - statistics.median(prompts[library])
            per_token = spent / (arguments.tokens - 1) * 1e3
            plain = per_token if name == library else plain
            last = rounds[-1]
            right = last.right / last.checked if last.checked else None
            per_pass = (arguments.tokens - 1) / max(last.passes - 1, 1)
            same = last.reply == runs[library][-1].reply
            shown = "" if right is None else f"{right:.0%}"
            print(f"{text}: {name:30}{shown:>8}{per_pass:10.2f}{per_token:10.1f}{per_token / plain:8.2f}", end="")
            print("" if same else "  another reply")
            results[f"{text}, {name}"] = {
                "right": right and round(right, 3),
                "tokens_per_pass": round(per_pass, 2),
                "ms_per_token": round(per_token, 1),
                "ratio": round(per_token / plain, 3),
                "same_reply": same,
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
