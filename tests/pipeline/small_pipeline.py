"""A whole pipeline small enough to run in seconds: from a few kilobytes of text to a model that was measured."""

from __future__ import annotations

from pathlib import Path

from camelid.pipeline.keys import KeyedStage

SENTENCES = [
    f"The {animal} {verb} near the {place}."
    for animal in ("llama", "camel", "alpaca", "vicuna")
    for verb in ("sleeps", "eats", "walks")
    for place in ("river", "hill", "road", "house")
]
RECIPE = """
[stages.tokenizer]
run = "tokenizer"
sources = ["texts"]
vocab_size = 340

[stages.data]
run = "prepare"
tokenizer = "{tokenizer}"
validation_share = 0.4
clean.sources = ["texts"]
clean.steps = [{step = "normalise"}, {step = "exact_dedup"}]

[stages.base]
run = "pretrain"
data = {shards = "{data}", sequence_length = 32, batch_size = 4}
device = "cpu"

[stages.base.model.shape]
vocab_size = 340
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64

[stages.base.training]
steps = 8
checkpoint_every = 2
schedule.warmup_steps = 2
sample_every = 8
sample_prompts = ["The llama"]
sample_tokens = 4

[stages.chat]
run = "sft"
model = "{base}"
data = {sources = ["talks.jsonl"], sequence_length = 64, batch_size = 2}
training = {steps = 4, schedule.warmup_steps = 1}
device = "cpu"

[stages.exam]
run = "evaluate"
model = "{chat}"
device = "cpu"

[[stages.exam.tasks]]
task = "bits_per_byte"
shards = "{data}"

[[stages.exam.tasks]]
task = "questions"
path = "questions.jsonl"
max_tokens = 4
"""


def write_inputs(folder: Path) -> None:
    """The texts, conversations and questions that the recipe names, and the recipe."""
    (folder / "texts").mkdir()
    for number in range(8):
        lines = SENTENCES[number::2] + SENTENCES[: 3 * number]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))
    (folder / "texts" / "copy.txt").write_text((folder / "texts" / "7.txt").read_text())
    talk = '{"messages": [{"role": "user", "content": "Who %s?"}, {"role": "assistant", "content": "The %s."}]}\n'
    pairs = [("sleeps", "llama"), ("eats", "camel"), ("walks", "alpaca"), ("rests", "vicuna")]
    (folder / "talks.jsonl").write_text("".join(talk % pair for pair in pairs))
    (folder / "questions.jsonl").write_text('{"question": "Who sleeps?", "answer": "The llama"}\n')
    (folder / "small.toml").write_text(RECIPE)


def weights_of(stage: KeyedStage) -> bytes:
    """The weights that a training stage ended with."""
    return (stage.result / "model.safetensors").read_bytes()
