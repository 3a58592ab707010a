"""Questions about countries, with answers from the World Factbook (CC0), for cria.

    python scripts/texts/countries.py profiles.jsonl.gz texts

The input has a country a line, with a fact a line in its text (github.com/factbook/factbook.json, commit 8662a8b1).
What is learned goes to `countries.jsonl.zst`; `capitals-held-out.jsonl` asks for the same capitals in words that are
not learned, so that it measures whether the fact was, not the sentence.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPITAL = ("What is the capital of {name}?", "Which city is the capital of {name}?", "What's the capital of {name}?",
           "Do you know the capital of {name}?", "{name}'s capital?")  # fmt: skip
CAPITAL_HELD_OUT = "Tell me the name of the capital city of {name}."
OF_CAPITAL = ("{capital} is the capital of which country?", "Which country has the capital {capital}?",
              "In which country is {capital}?")  # fmt: skip
PLACE = ("Where is {name}?", "Where can I find {name} on a map?", "In which part of the world is {name}?")
CONTINENT = ("On which continent is {name}?", "Which continent does {name} belong to?")
HIGHEST = ("What is the highest mountain in {name}?", "What is the highest point in {name}?")
PEOPLE = ("How many people live in {name}?", "What is the population of {name}?")
LANGUAGE = ("Which language do people speak in {name}?", "What language is spoken in {name}?")
MONEY = ("What money do people use in {name}?", "What is the currency of {name}?")
GROWN = ("What do farmers grow in {name}?", "What grows in {name}?")
ABOUT = ("Tell me about {name}.", "What do you know about {name}?", "Tell me something about {name}.")

CONTINENTS = ("Africa", "Europe", "Asia", "North America", "South America", "Oceania", "Antarctica")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    learned: list[str] = []
    held_out: list[str] = []
    with gzip.open(arguments.profiles, "rt", encoding="utf-8") as file:
        for profile in map(json.loads, file):
            facts = facts_of(profile["text"])
            if "name" not in facts:
                continue
            learned += [conversation(question, answer) for question, answer in questions(facts)]
            if "capital" in facts:
                question = CAPITAL_HELD_OUT.format(**facts)
                answers = [facts["capital"], sentence("The capital of {name} is {capital}.", facts)]
                held_out.append(json.dumps({"kind": "capital", "question": question, "answers": answers}))
    random.Random("countries").shuffle(learned)
    content = ("\n".join(learned) + "\n").encode()
    (arguments.folder / "countries.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    (arguments.folder / "capitals-held-out.jsonl").write_text("\n".join(held_out) + "\n", encoding="utf-8")
    print(f"{len(learned)} questions to learn from, {len(held_out)} held out")


def facts_of(text: str) -> dict[str, str]:
    """The facts that questions are asked about, each in the words of an answer."""
    lines = dict(line.split(":", 1) for line in text.split("\n") if ":" in line)
    found: dict[str, str] = {}

    def take(name: str, line: str, pattern: str) -> None:
        value = lines.get(line, "").strip()
        if match := re.match(pattern, value):
            found[name] = match[1].strip()

    take("name", "Government - Country name - conventional short form", r"((?:the )?[A-Z][A-Za-z' -]+)$")
    take("capital", "Government - Capital - name", r"([A-Z][^\W\d_]+(?:[ '-][^\W\d_]+){0,3})$")
    take("place", "Geography - Location", r"([A-Z][A-Za-z ]+?)(?:,|$)")
    take("next_to", "Geography - Location", r".*?, between ([A-Z][A-Za-z ]+ and [A-Z][A-Za-z ]+)$")
    take("continent", "Geography - Map references", rf"({'|'.join(CONTINENTS)})\b")
    take("highest", "Geography - Elevation - highest point", r"([A-Z][^\W\d_]+(?:[ '-][^\W\d_]+){0,3}) [\d,]+ ?m?$")
    take("people", "People and Society - Population - total", r"([\d,]+)")
    take("language", "People and Society - Languages - Languages", r"([A-Z][a-z]+)\b")
    take("money", "Economy - Exchange rates - Currency", r"([A-Za-z ]+?) \([A-Z]{3}\)")
    take("grown", "Economy - Agricultural products - text", r"([a-z ]+, [a-z ]+, [a-z ]+)")
    if found.get("place") in ("Middle East", "Caribbean", "Caribbean Sea"):
        found["place"] = f"the {found['place']}"
    if "people" in found:
        found["people"] = rounded(int(found["people"].replace(",", "")))
    return found


def rounded(number: int) -> str:
    """In words that can be remembered: "about 68 million"."""
    if number >= 1_500_000:
        return f"about {number / 1e6:.0f} million"
    if number >= 950_000:
        return "about one million"
    return f"about {round(number, -3) if number >= 10_000 else round(number, -2):,}"


def questions(facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each question about a country, and its answer."""
    kinds = [
        (CAPITAL, "The capital of {name} is {capital}."),
        (OF_CAPITAL, "{capital} is the capital of {name}."),
        (PLACE, "{name} is in {place}, between {next_to}." if "next_to" in facts else "{name} is in {place}."),
        (CONTINENT, "{name} is in {continent}."),
        (HIGHEST, "The highest point in {name} is {highest}."),
        (PEOPLE, "{people} people live in {name}."),
        (LANGUAGE, "People in {name} speak {language}."),
        (MONEY, "People in {name} use {money}."),
        (GROWN, "Farmers in {name} grow {grown}."),
    ]
    for forms, answer in kinds:
        if set(re.findall(r"{(\w+)}", answer)) <= facts.keys():
            for form in forms:
                yield sentence(form, facts), sentence(answer, facts)
    if {"place", "capital", "people"} <= facts.keys():
        answer = "{name} is in {place}. Its capital is {capital}. {people} people live there."
        for form in ABOUT:
            yield (
                sentence(form, facts),
                ". ".join(part[:1].upper() + part[1:] for part in sentence(answer, facts).split(". ")),
            )


def sentence(form: str, facts: dict[str, str]) -> str:
    filled = form.format(**facts)
    return filled[0].upper() + filled[1:]


def conversation(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


if __name__ == "__main__":
    main()
