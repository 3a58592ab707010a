"""What structured output costs: compiling a schema, and per token the mask and its application.

    python benchmarks/grammar.py [--model NAME] [--tokens 200]

One thread's processor time; the scores are random, only the vocabulary is the model's. The schema is an order with a
list of items. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

import camelid
from camelid.engine.grammar import GrammarCompiler
from camelid.engine.params import SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "maxLength": 40},
        "paid": {"type": "boolean"},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "kind": {"enum": ["book", "record", "film"]},
                    "count": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["name", "kind", "count"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["customer", "paid", "items"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    llm = camelid.load(arguments.model)
    vocab_size = llm.model.config.vocab_size
    start = time.thread_time()
    vocabulary = llm._vocabulary()
    bytes_ms = (time.thread_time() - start) * 1e3
    start = time.thread_time()
    compiler = GrammarCompiler(vocabulary, vocab_size, llm.stop_ids)
    trie_ms = (time.thread_time() - start) * 1e3
    params = SamplingParams(json_schema=SCHEMA)
    start = time.thread_time()
    compiler.compile(params)
    compile_ms = (time.thread_time() - start) * 1e3

    generator = torch.Generator().manual_seed(0)
    masks, accepts = [], []
    grammar = compiler.compile(params)
    for _ in range(arguments.tokens):
        logits_V = torch.randn(vocab_size, generator=generator)
        start = time.thread_time()
        grammar.mask(logits_V)
        masks.append((time.thread_time() - start) * 1e6)
        token = int(logits_V.argmax())
        start = time.thread_time()
        is_whole = token in llm.stop_ids or grammar.accept(token)
        accepts.append((time.thread_time() - start) * 1e6)
        if is_whole:
            grammar = compiler.compile(params)
    result = {
        "name": "grammar",
        "vocabulary": vocab_size,
        "token_bytes_ms": round(bytes_ms, 1),
        "tokenizer_ms": round(trie_ms, 1),
        "compile_ms": round(compile_ms, 2),
        "mask_us_median": round(statistics.median(masks), 1),
        "mask_us_99th": round(statistics.quantiles(masks, n=100)[98], 1),
        "accept_us_median": round(statistics.median(accepts), 1),
    }
    for name, value in result.items():
        print(f"{name:20}{value:>14}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
