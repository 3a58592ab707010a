"""Stories for cria, sampled from stories15M by camelid's engine.

    python scripts/texts/stories.py MODEL runs/stories.jsonl --stories 6656
    python scripts/texts/stories.py MODEL runs/stories-1.jsonl --first 100000 --at-once 1536 --seconds 120   # on a GPU

MODEL is stories15M as llama2.c's `stories15M.bin`, with Llama 2's `tokenizer.model` in the same folder. Story n is
drawn with the seed n; a call after a kill goes on with those that are missing. `pack.py` makes texts of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from drawing import draw

from camelid.engine.params import SamplingParams
from camelid.llm import load

MAX_TOKENS = 255
"""What the model's context holds behind the begin token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--stories", type=int, default=10**6)
    parser.add_argument("--first", type=int, default=0, help="the first story's number")
    parser.add_argument("--at-once", type=int, default=128, help="stories that are told together")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.02)
    arguments = parser.parse_args()

    llm = load(arguments.model, max_sequences=arguments.at_once)
    bos = llm.tokenizer.special.bos
    assert bos is not None

    def request(number: int) -> tuple[list[int], SamplingParams]:
        return [bos], SamplingParams(
            max_tokens=MAX_TOKENS, temperature=arguments.temperature, min_p=arguments.min_p, seed=number
        )

    numbers = range(arguments.first, arguments.first + arguments.stories)
    draw(llm, arguments.output, numbers, request, at_once=arguments.at_once, seconds=arguments.seconds)


if __name__ == "__main__":
    main()
