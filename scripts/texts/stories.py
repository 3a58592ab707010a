"""Stories for cria, sampled from stories15M by camelid's engine.

    python scripts/texts/stories.py MODEL texts/stories.jsonl --stories 6656
    python scripts/texts/stories.py MODEL runs/stories-1.jsonl --first 50000 --at-once 2048   # on a GPU

MODEL is stories15M as llama2.c's `stories15M.bin`, with Llama 2's `tokenizer.model` in the same folder. Story n is
drawn with the seed n, so that any of them can be drawn again; the texts are written in that order, window by window,
and a call after a kill goes on behind the last whole window.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from camelid.base.progress import progress
from camelid.engine.params import SamplingParams
from camelid.llm import load

WINDOW = 8192
"""Stories that are queued together."""

MAX_TOKENS = 255
"""What the model's context holds behind the begin token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--stories", type=int, default=6656)
    parser.add_argument("--first", type=int, default=0, help="the first story's number")
    parser.add_argument("--at-once", type=int, default=128, help="stories that are told together")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.02)
    arguments = parser.parse_args()

    llm = load(arguments.model, max_sequences=arguments.at_once)
    done = _whole_windows(arguments.output)
    with progress("stories", arguments.stories, unit="stories") as shown:
        shown.advance(done)
        for first in range(done, arguments.stories, WINDOW):
            window = min(WINDOW, arguments.stories - first)
            params = [
                SamplingParams(
                    max_tokens=MAX_TOKENS, temperature=arguments.temperature, min_p=arguments.min_p, seed=seed
                )
                for seed in range(arguments.first + first, arguments.first + first + window)
            ]
            prompts = [[llm.tokenizer.special.bos]] * window
            texts = [llm.tokenizer.decode(reply.token_ids).strip() for reply in llm.engine.generate(prompts, params)]
            with arguments.output.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            shown.advance(window)


def _whole_windows(output: Path) -> int:
    """The stories of whole windows that stand in the file; what follows them is cut off."""
    if not output.exists():
        return 0
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    done = len(lines) // WINDOW * WINDOW
    output.write_text("".join(lines[:done]), encoding="utf-8", newline="\n")
    return done


if __name__ == "__main__":
    main()
