"""`samples.jsonl`: what the model writes at some steps of a run, so that one can read how it learns.

{"step": 500, "prompt": "Once upon a time", "text": " there was a llama."}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camelid.base.errors import RecipeError
from camelid.llm import LLM
from camelid.train.records import read_records
from camelid.train.validation import undisturbed

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.model.base import LanguageModel
    from camelid.train.checkpointing import Companions
    from camelid.train.settings import TrainSettings

SAMPLES = "samples.jsonl"
BLOCK = 16
"""Tokens that the cache sets aside at once, by which each sequence may take more than it has."""


@dataclass(frozen=True)
class Sample:
    """One text that the model wrote."""

    step: int
    """Updates made before it."""
    prompt: str
    text: str


class Sampler:
    """Writes samples with a model that is being trained, as its folder would.

    A prompt is a user's message where the model has a chat template, else a text to go on from.

    Args:
        model: the model; its weights are read anew for each sample.
        companions: its tokenizer and chat template.
        settings: which prompts, how many tokens, at which temperature; `settings.seed` is the samples' too.

    Raises:
        RecipeError: there is no tokenizer to write with, or a prompt leaves no room for a reply.
        ChatFormatError: the template cannot express a prompt.
    """

    def __init__(self, model: LanguageModel, companions: Companions, settings: TrainSettings) -> None:
        if companions.tokenizer is None:
            raise RecipeError("samples need a tokenizer", where="training.sample_every")
        self._model = model
        self._companions = companions
        self._settings = settings
        self._prompts: list[Any] = list(settings.sample_prompts)
        if companions.chat_template is not None:
            self._prompts = [[{"role": "user", "content": prompt}] for prompt in self._prompts]
        llm = LLM(model, companions.tokenizer, chat_template=companions.chat_template)
        lengths = [len(llm.encode_prompt(prompt)) for prompt in self._prompts]
        for prompt, length in zip(settings.sample_prompts, lengths, strict=True):
            if not 0 < length < model.config.max_position_embeddings:
                raise RecipeError(
                    f"a prompt of {length} tokens cannot be replied to in a context of "
                    f"{model.config.max_position_embeddings}: {prompt[:40]!r}",
                    where="training.sample_prompts",
                )
        self._longest = min(max(lengths) + settings.sample_tokens, model.config.max_position_embeddings)

    def write(self, step: int) -> list[Sample]:
        """What the model writes now: one sample for each prompt."""
        settings = self._settings
        assert self._companions.tokenizer is not None
        with undisturbed(self._model):
            llm = LLM(
                self._model,
                self._companions.tokenizer,
                chat_template=self._companions.chat_template,
                generation_config=self._companions.generation_config,
                cache_tokens=(self._longest + BLOCK) * len(self._prompts),
                block_size=BLOCK,
            )
            replies = llm.generate(
                self._prompts,
                max_tokens=settings.sample_tokens,
                temperature=settings.sample_temperature,
                seed=settings.seed,
            )
        return [
            Sample(step, prompt, reply.text) for prompt, reply in zip(settings.sample_prompts, replies, strict=True)
        ]


def read_samples(path: Path) -> list[Sample]:
    """The samples in a file; none if there is no file.

    Raises:
        FormatError: a line is not what this version writes.
    """
    return read_records(path, Sample)
