"""Drawing numbered texts from a model: text n is drawn with the seed n, so that any of them can be drawn again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from camelid.base.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from camelid.engine.params import SamplingParams
    from camelid.llm import LLM

WAITING = 64
"""Prompts kept in the queue behind those that run."""


def draw(
    llm: LLM,
    output: Path,
    numbers: range,
    request: Callable[[int], tuple[list[int], SamplingParams]],
    *,
    at_once: int,
    seconds: float | None = None,
) -> None:
    """Write each number's text as a line with its number; a later call goes on with those that are missing.

    Args:
        llm: the model.
        output: JSON lines, in the order in which the texts end.
        numbers: which texts.
        request: the prompt and the settings of a number.
        at_once: texts that the model's engine runs together.
        seconds: stop after so long; None: when all are written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _numbers_in(output)
    left = iter([number for number in numbers if number not in done])
    engine, ids_of = llm.engine, dict[int, list[int]]()
    started = time.monotonic()
    with (
        output.open("a", encoding="utf-8", newline="\n") as file,
        progress("texts", len(numbers), unit="texts") as shown,
    ):
        shown.advance(len(numbers) - len(set(numbers) - done))
        while seconds is None or time.monotonic() - started < seconds:
            while len(ids_of) < at_once + WAITING and (number := next(left, None)) is not None:
                prompt, params = request(number)
                ids_of[engine.add(prompt, params, request_id=number)] = []
            if not ids_of:
                break
            for step in engine.step():
                ids_of[step.request_id] += step.token_ids
                if step.finish_reason is not None:
                    text = llm.tokenizer.decode(ids_of.pop(step.request_id)).strip()
                    file.write(json.dumps({"number": step.request_id, "text": text}, ensure_ascii=False) + "\n")
                    shown.advance(1)


def _numbers_in(output: Path) -> set[int]:
    """Those of the whole lines; a line that was cut off by a kill is dropped."""
    if not output.exists():
        return set()
    lines = [line for line in output.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    output.write_text("".join(lines), encoding="utf-8", newline="\n")
    return {json.loads(line)["number"] for line in lines}
