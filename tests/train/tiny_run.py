"""The tiny run that the tests train: a model of 20k parameters on sequences whose next token can be learnt."""

from __future__ import annotations

import numpy as np

from camelid.data.batch import Batch
from camelid.model.llama import Llama, LlamaConfig
from camelid.train.settings import OptimizerSettings, ScheduleSettings, TrainSettings

VOCAB_SIZE = 96


def tiny_model(*, tied: bool = True, seed: int = 7) -> Llama:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = Llama.from_config(config)
    model.initialize(seed)
    return model


def settings(**changes) -> TrainSettings:
    defaults = {
        "steps": 12,
        "optimizer": OptimizerSettings(learning_rate=1e-2),
        "schedule": ScheduleSettings(warmup_steps=3),
        "checkpoint_every": 4,
    }
    return TrainSettings(**{**defaults, **changes})


class TinyBatches:
    """Sequences that count upwards in steps drawn from the batch's number, with a weight of 0 at each one's end."""

    def __init__(self, lengths: tuple[int, ...] = (24, 16, 24), fingerprint: str = "tiny") -> None:
        self.lengths = lengths
        self.fingerprint = fingerprint

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng(number)
        sequences = [
            (rng.integers(VOCAB_SIZE) + rng.integers(1, 3) * np.arange(length + 1)) % VOCAB_SIZE
            for length in self.lengths
        ]
        weights = [np.ones(length, np.float32) for length in self.lengths]
        for weight in weights:
            weight[-1] = 0
        ids_T = np.concatenate([sequence[:-1] for sequence in sequences]).astype(np.int64)
        return Batch(
            ids_T=ids_T,
            targets_T=np.concatenate([sequence[1:] for sequence in sequences]).astype(np.int64),
            weights_T=np.concatenate(weights),
            positions_T=np.concatenate([np.arange(length) for length in self.lengths]).astype(np.int64),
            lengths=self.lengths,
            num_target_bytes=3 * sum(length - 1 for length in self.lengths),
            first_sample=number * len(self.lengths),
        )


def concatenated(batches: list[Batch]) -> Batch:
    """One batch that holds several."""
    return Batch(
        *(
            np.concatenate([getattr(b, name) for b in batches])
            for name in ("ids_T", "targets_T", "weights_T", "positions_T")
        ),
        lengths=tuple(length for b in batches for length in b.lengths),
        num_target_bytes=sum(b.num_target_bytes for b in batches),
        first_sample=batches[0].first_sample,
    )
