"""Small talk and simple questions for cria, answered by SmolLM2-135M-Instruct in camelid's engine.

    python scripts/texts/dialogues.py runs/dialogues.jsonl
    python scripts/texts/dialogues.py runs/dialogues-0.jsonl --share 0/4    # the first of four processes

Each form below is asked of each topic of `topics.py`. A request's seed is a hash of its own text, so that neither order
nor number of processes matters to it. Answers are kept if they are plain whole sentences. The file holds conversations
in OpenAI's message schema, each with its topic.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from topics import topics

from camelid.base.progress import progress
from camelid.engine.params import SamplingParams
from camelid.llm import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from camelid.llm import LLM

MODEL = "smollm2-135m-instruct"

SHORT = "You answer children. Use one short, simple sentence."
LONG = "You explain things to children in a few short, simple sentences."

SHORT_FORMS = (
    "What is {topic}?",
    "Tell me something about {topic}.",
    "Tell me a fact about {topic}.",
    "What do you know about {topic}?",
    "Why do people like {topic}?",
    "Why is {topic} important?",
    "Do you like {topic}?",
    "What can you do with {topic}?",
    "Where can I find {topic}?",
    "What does {topic} look like?",
    "How does {topic} work?",
    "Describe {topic}.",
    "What is special about {topic}?",
    "What makes {topic} interesting?",
    "Can you describe {topic} in one sentence?",
    "How would you explain {topic} to a child?",
    "What is {topic} for?",
    "Say something nice about {topic}.",
)
LONG_FORMS = (
    "Tell me about {topic}.",
    "Explain {topic} to me.",
    "Can you tell me more about {topic}?",
    "Write a few sentences about {topic}.",
)

FEELINGS = """happy sad tired hungry angry afraid bored lonely excited sick proud curious cold hot thirsty sleepy lucky
shy lost busy worried nervous silly jealous""".split()

OF_A_FEELING = (
    "I am {feeling}.",
    "I feel {feeling} today.",
    "Why am I {feeling}?",
    "What should I do when I am {feeling}?",
    "My friend is {feeling}. What can I say?",
    "My brother is {feeling}. How can I help?",
)

THINGS_TO_SAY = (
    "Hello!", "Hi there.", "Good morning!", "Good night!", "Thank you.", "Goodbye!", "How are you?", "I am sorry.",
    "What do you like?", "Tell me a secret.", "Can you help me?", "I have a question.", "You are funny.",
    "What is your favourite colour?", "What should we play?", "It is raining today.", "I lost my toy.",
    "I love my mother.", "I have a new friend.", "Today is my birthday.", "What did you do today?", "Hey!", "Hi!",
    "What is your favourite animal?", "What is your favourite food?", "Can I ask you something?", "Are you there?",
    "I cannot sleep.", "I want to learn something.", "What should I read?", "What should I eat today?",
    "How can I make a friend?", "How do I learn to swim?", "What makes a good friend?", "My dog is sick.",
    "I got a good mark at school.", "I broke a cup.", "I do not want to go to school.", "Who is your best friend?",
    "What is the best thing in the world?", "Give me some advice.", "Say something nice.", "Cheer me up!",
)  # fmt: skip

SMALL_TALK_DRAWS = 8

WINDOW = 2048
"""Requests that are queued together."""

SENTENCES = re.compile(r"[A-Z\"][A-Za-z0-9 ,.;:'\"!?()-]{8,500}[.!?]\"?")
"""What an answer must look like, from its first letter to the last mark."""

UNWANTED = re.compile(
    r"language model|\bAI\b|SmolLM|Hugging|as an assistant|digital|chatbot|\bI'm here to", re.IGNORECASE
)
"""The teacher speaking of itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--share", default="0/1", help="which of how many parts of the topics: first is 0/n")
    parser.add_argument("--topics", type=int, default=None, help="how many of them at most")
    parser.add_argument("--at-once", type=int, default=64, help="sequences that run together")
    arguments = parser.parse_args()

    number, parts = map(int, arguments.share.split("/"))
    llm = load(arguments.model, max_sequences=arguments.at_once, max_context=320)
    chosen = topics()[number::parts][: arguments.topics]
    numbered = [(*question, 0) for question in formed(chosen)]
    if number == 0:
        numbered += [(*question, draw) for question in small_talk() for draw in range(SMALL_TALK_DRAWS)]

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        arguments.output.open("w", encoding="utf-8", newline="\n") as file,
        progress("answers", len(numbered), unit="answers") as shown,
    ):
        for window in _windows(numbered):
            prompts = [_conversation(system, question) for _, system, question, _ in window]
            seeds = [seed_of(f"{question}/{draw}") for _, _, question, draw in window]
            lengths = [56 if system == SHORT else 120 for _, system, _, _ in window]
            for (topic, system, question, _), reply in zip(window, replies(llm, prompts, seeds, lengths), strict=True):
                answer = kept_part(reply, at_most=2 if system == SHORT else 5)
                if answer is not None:
                    messages = [_user(question), {"role": "assistant", "content": answer}]
                    line = {"topic": topic, "messages": messages}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            shown.advance(len(window))


Question = tuple[str, str, str]
"""Topic, system prompt under which it is answered, and its text."""


def formed(chosen: Sequence[str]) -> list[Question]:
    short = [(topic, SHORT, form.format(topic=topic)) for topic in chosen for form in SHORT_FORMS]
    return short + [(topic, LONG, form.format(topic=topic)) for topic in chosen for form in LONG_FORMS]


def small_talk() -> list[Question]:
    """Said more often than the rest, and answered as often in other words."""
    feelings = [("feelings", SHORT, form.format(feeling=feeling)) for feeling in FEELINGS for form in OF_A_FEELING]
    return feelings + [("small talk", SHORT, said) for said in THINGS_TO_SAY]


def replies(
    llm: LLM, prompts: Sequence[list[dict[str, str]]], seeds: Sequence[int], lengths: Sequence[int]
) -> Iterator[str]:
    params = [
        SamplingParams(max_tokens=length, temperature=0.7, min_p=0.05, seed=seed)
        for seed, length in zip(seeds, lengths, strict=True)
    ]
    ids = [llm.encode_prompt(prompt) for prompt in prompts]
    return (llm.tokenizer.decode(reply.token_ids) for reply in llm.engine.generate(ids, params))


def kept_part(reply: str, *, at_most: int) -> str | None:
    """The first sentences of a reply, or None where they are not plain."""
    line = reply.strip().split("\n")[0]
    sentences = re.findall(r"[^.!?]+[.!?]+\"?", line)[:at_most]
    answer = "".join(sentences).strip()
    return answer if SENTENCES.fullmatch(answer) and not UNWANTED.search(answer) else None


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _windows(rows: Sequence[tuple]) -> Iterator[Sequence[tuple]]:
    return (rows[first : first + WINDOW] for first in range(0, len(rows), WINDOW))


def _conversation(system: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, _user(question)]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


if __name__ == "__main__":
    main()
