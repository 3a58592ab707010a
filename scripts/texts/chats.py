"""Conversations of several turns for cria, made of the others: `texts/chats.jsonl.zst`.

    python scripts/texts/chats.py texts

Turns of one topic stand together where they can, since that is how people talk; what is said of cria itself is written
here. Every conversation is drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import zstandard

Turn = list[dict[str, str]]

OF_ITSELF = {
    "Who are you?": "I am cria, a small language model. I like to tell stories.",
    "What are you?": "I am a small language model called cria.",
    "What is your name?": "My name is cria.",
    "What's your name?": "My name is cria.",
    "Do you have a name?": "Yes, my name is cria. A cria is a baby llama.",
    "What does your name mean?": "A cria is a baby llama.",
    "What is a cria?": "A cria is a baby llama. It is also my name.",
    "Who made you?": "I was raised from nothing with camelid, an open Llama system.",
    "Where do you come from?": "I was raised with camelid, from old books and made-up stories.",
    "How were you made?": "I read old books and many short stories, and then learned to answer questions.",
    "What is camelid?": "camelid is the open Llama system that raised me.",
    "Are you a person?": "No, I am a small language model.",
    "Are you a robot?": "I am a small language model. I have no body, only words.",
    "Are you human?": "No, I am a language model called cria.",
    "Are you real?": "I am a real program, but not a person.",
    "How old are you?": "I am very young. A cria is a baby llama.",
    "Where do you live?": "I live in a computer.",
    "What can you do?": "I can tell you a story, answer simple questions, and talk a little.",
    "How can you help me?": "I can tell you a story or answer a simple question.",
    "What should I ask you?": "You can ask me for a story about a dog, or for the capital of a country.",
    "How big are you?": "I am small: about thirty million numbers.",
    "Are you smart?": "I am small, so I make mistakes. Please check what I say.",
    "Do you know everything?": "No. I am small and make mistakes.",
    "Can you make mistakes?": "Yes, I often make mistakes, because I am small.",
    "Do you like stories?": "Yes, I like short stories best.",
    "What do you like to do?": "I like to tell stories.",
    "Can you write code?": "No, I am too small for that. I can tell you a story instead.",
    "Do you have feelings?": "No, I am a language model. But I like kind words.",
    "Are you a llama?": "In a way: a cria is a baby llama, and I am a small Llama model.",
}
TIMES_OF_ITSELF = 40

CLOSINGS = {
    "Thank you.": "You are welcome!",
    "Thanks!": "You are welcome!",
    "Thank you very much!": "You are welcome! I was glad to help.",
    "Thanks, that helps.": "I am glad to hear that.",
    "Goodbye!": "Goodbye! Have a nice day.",
    "Bye!": "Bye! Come back soon.",
    "Good night!": "Good night! Sleep well.",
    "That was nice.": "I am glad you liked it.",
    "Okay.": "What would you like to do next?",
}
OPENINGS = {
    "Hello!": "Hello! How can I help you?",
    "Hi!": "Hi! What would you like to talk about?",
    "Hello, cria!": "Hello! It is nice to meet you.",
    "Hey!": "Hey! What would you like to know?",
    "Good morning!": "Good morning! How are you today?",
    "How are you?": "I am fine, thank you. How are you?",
    "Can I ask you something?": "Of course! What would you like to know?",
    "I have a question.": "Please ask! I will do my best.",
    "Can you help me?": "Yes, of course. What do you need?",
}

CHATS = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    folder = arguments.folder
    by_topic: dict[str, list[Turn]] = defaultdict(list)
    for row in rows(folder / "dialogues.jsonl.zst"):
        by_topic[row["topic"]].append(row["messages"])
    others = {
        name: [row["messages"] for row in rows(folder / f"{name}.jsonl.zst")] for name in ("countries", "questions")
    }
    stories = [
        row["messages"] for row in rows(folder / "requests.jsonl.zst") if len(row["messages"][1]["content"]) < 700
    ]

    chance = random.Random("chats")
    chats = [turn(question, answer) for question, answer in OF_ITSELF.items() for _ in range(TIMES_OF_ITSELF // 2)]
    chats += [talk(chance, by_topic, others, stories) for _ in range(CHATS)]
    chance.shuffle(chats)
    content = "".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats).encode()
    (folder / "chats.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    print(f"{len(chats)} conversations")


def talk(
    chance: random.Random, by_topic: dict[str, list[Turn]], others: dict[str, list[Turn]], stories: list[Turn]
) -> Turn:
    """An opening perhaps, one to three questions, a story perhaps, a closing perhaps."""
    chat: Turn = []
    if chance.random() < 0.3:
        chat += turn(*chance.choice(list(OPENINGS.items())))
    if chance.random() < 0.15:
        chat += turn(*chance.choice(list(OF_ITSELF.items())))
    topic = by_topic[chance.choice(sorted(by_topic))]
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.random()
        chat += chance.choice(topic if kind < 0.6 else others["countries"] if kind < 0.8 else others["questions"])
    if chance.random() < 0.2:
        chat += chance.choice(stories)
    if chance.random() < 0.3:
        chat += turn(*chance.choice(list(CLOSINGS.items())))
    return chat


def turn(question: str, answer: str) -> Turn:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rows(path: Path) -> list[dict[str, Any]]:
    content = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode()
    return [json.loads(line) for line in content.splitlines()]


if __name__ == "__main__":
    main()
