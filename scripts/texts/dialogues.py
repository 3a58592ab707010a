"""Small talk and simple questions for cria, answered by SmolLM2-135M-Instruct in camelid's engine.

    python scripts/texts/dialogues.py runs/dialogues.jsonl

Answers are drawn with the question's number as seed, and kept if they are one or two plain sentences. The file holds
conversations in OpenAI's message schema, in the order of the questions, window by window; a call after a kill goes on
behind the last whole window.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from questions import NOUNS

from camelid.base.progress import progress
from camelid.engine.params import SamplingParams
from camelid.llm import load

MODEL = "smollm2-135m-instruct"

SYSTEM = "You answer children. Use one short, simple sentence."

OF_A_THING = (
    "What is {a}?",
    "What does {a} look like?",
    "Where can I find {a}?",
    "Tell me something about {a}.",
    "What can you do with {a}?",
    "Do you like the word {noun}?",
    "Is {a} big or small?",
    "Why would somebody need {a}?",
)

FEELINGS = """happy sad tired hungry angry afraid bored lonely excited sick proud curious cold hot thirsty sleepy lucky
shy lost busy""".split()

OF_A_FEELING = (
    "I am {feeling}.",
    "I feel {feeling} today.",
    "Why am I {feeling}?",
    "What should I do when I am {feeling}?",
    "My friend is {feeling}. What can I say?",
    "Are you ever {feeling}?",
)

THINGS_TO_SAY = (
    "Hello!", "Hi there.", "Good morning!", "Good night!", "Thank you.", "Goodbye!", "How are you?", "I am sorry.",
    "What do you like?", "Tell me a secret.", "Can you help me?", "I have a question.", "You are funny.",
    "What is your favourite colour?", "What should we play?", "It is raining today.", "I lost my toy.",
    "I love my mother.", "I have a new friend.", "Today is my birthday.", "What did you do today?",
)  # fmt: skip

TIMES_EACH = 6
"""Answers drawn to each feeling and each thing to say; things are asked about once."""

WINDOW = 256

KEPT = re.compile(r"[A-Z][A-Za-z0-9 ,.;:'\"!?-]{8,220}[.!?]\"?")
"""What an answer must look like, from its first letter to the last mark."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--questions", type=int, default=1280, help="how many of them are asked")
    arguments = parser.parse_args()

    asked = questions()[: arguments.questions]
    done_file = arguments.output.with_suffix(".done")
    done = int(done_file.read_text()) if done_file.exists() else 0
    llm = load(MODEL, max_sequences=64, max_context=256)
    with progress("dialogues", len(asked), unit="questions") as shown:
        shown.advance(done)
        for first in range(done, len(asked), WINDOW):
            window = asked[first : first + WINDOW]
            prompts = [llm.encode_prompt([{"role": "system", "content": SYSTEM}, _user(q)]) for q in window]
            params = [
                SamplingParams(max_tokens=56, temperature=0.7, min_p=0.05, seed=first + n) for n in range(len(window))
            ]
            lines = []
            for question, reply in zip(window, llm.engine.generate(prompts, params), strict=True):
                answer = kept_part(llm.tokenizer.decode(reply.token_ids))
                if answer is not None:
                    messages = [_user(question), {"role": "assistant", "content": answer}]
                    lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            with arguments.output.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
            done_file.write_text(str(first + len(window)))
            shown.advance(len(window))


def questions() -> list[str]:
    """Everything that is asked, shuffled."""
    asked = [form.format(a=_a(noun), noun=noun) for noun in NOUNS for form in OF_A_THING]
    asked += [form.format(feeling=feeling) for feeling in FEELINGS for form in OF_A_FEELING] * TIMES_EACH
    asked += THINGS_TO_SAY * TIMES_EACH
    random.Random("dialogues").shuffle(asked)
    return asked


def kept_part(reply: str) -> str | None:
    """The first sentences of a reply, two at most, or None where they are not plain."""
    line = reply.strip().split("\n")[0]
    sentences = re.findall(r"[^.!?]+[.!?]+\"?", line)[:2]
    answer = "".join(sentences).strip()
    return answer if KEPT.fullmatch(answer) and "language model" not in answer else None


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


if __name__ == "__main__":
    main()
