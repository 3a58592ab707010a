"""A small real model, in double precision so that no rounding depends on what runs beside it; and an engine's end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import StepOutput
from camelid.engine.sampling import sample
from camelid.engine.sequence import Sequence
from camelid.engine.step import StepStats
from camelid.model.attention import AttentionContext, PackedContext
from camelid.model.base import LanguageModel, ModelConfig
from camelid.model.linear import Linear

PlainLoop = Callable[..., list[int]]
"""The fixture `plain_loop`: prompt, params, stop_ids=, model= → reply."""


@dataclass(frozen=True)
class TinyConfig(ModelConfig):
    model_type: ClassVar[str] = "tiny"
    vocab_size: int = 61
    hidden_size: int = 24
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 8
    max_position_embeddings: int = 64
    tie_word_embeddings: bool = False
    dtype: str = "float32"

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Self:
        return cls(**settings)

    def to_hf(self) -> dict[str, Any]:
        return vars(self)

    @property
    def num_parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in TinyModel(self).parameters())


class TinyModel(LanguageModel):
    """Embeddings of token and position, two attention layers with grouped keys and values, a head."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config: TinyConfig = config
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.queries = nn.ModuleList(nn.Linear(width, config.num_attention_heads * config.head_dim) for _ in range(2))
        self.keys = nn.ModuleList(nn.Linear(width, kv_width) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(width, kv_width) for _ in range(2))
        self.outputs = nn.ModuleList(nn.Linear(config.num_attention_heads * config.head_dim, width) for _ in range(2))
        self.head = Linear(width, config.vocab_size)

    def forward(self, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        x = self.tokens(ids_T) + self.positions(positions_T)
        for layer in range(self.config.num_hidden_layers):
            q = self.queries[layer](x).unflatten(1, (self.config.num_attention_heads, -1))
            k, v = (
                part[layer](x).unflatten(1, (self.config.num_key_value_heads, -1)) for part in (self.keys, self.values)
            )
            attended = context.attend(layer, q, k, v, scale=self.config.head_dim**-0.5)
            x = torch.tanh(x + self.outputs[layer](attended.flatten(1)))
        return context.wanted(x)

    @property
    def output_matrix(self) -> Linear:
        return self.head

    @classmethod
    def from_config(cls, config: TinyConfig) -> Self:
        return cls(config)

    def initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)


def new_tiny_model(seed: int = 0) -> TinyModel:
    model = TinyModel.from_config(TinyConfig()).double()
    model.initialize(seed)
    return model


def run_to_the_end(engine: Engine) -> dict[int, list[StepOutput]]:
    outputs: dict[int, list[StepOutput]] = {}
    while engine.has_unfinished:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def free_blocks(engine: Engine) -> int:
    """As the step log tells, after one more short request."""
    seen: list[StepStats] = []
    engine.on_step = seen.append
    engine.generate([[1]], SamplingParams(max_tokens=1))
    return seen[-1].num_free_blocks


@torch.inference_mode()
def run_plain_loop(
    prompt: list[int], params: SamplingParams, *, stop_ids: tuple[int, ...] = (), model: LanguageModel
) -> list[int]:
    """Continue one prompt by running the whole sequence again for every token: no cache, no batch, no blocks."""
    room = model.config.max_position_embeddings - len(prompt)
    row = Sequence(0, list(prompt), params, seed=params.seed or 0, stop_ids=frozenset(), max_length=10**9)
    ids, device = row.token_ids, next(model.parameters()).device
    while len(ids) - len(prompt) < min(room, params.max_tokens or room):
        context = PackedContext([len(ids)])
        hidden = model(torch.tensor(ids, device=device), context.positions(device), context)
        [token] = sample(model.logits(hidden[-1:]), [row])
        assert token is not None
        if token in {*stop_ids, *params.stop_token_ids}:
            break
        ids.append(token)
    return ids[len(prompt) :]
