"""Tiny models beside transformers' with the same weights, and the simplest possible cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from camelid.model.attention import AttentionContext, PackedContext, Reach, causal_attention
from camelid.model.llama import Llama, LlamaConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
"""Small enough to be quick; weights large enough for every part of the network to matter to the logits."""


@dataclass(frozen=True)
class Pair:
    """One set of weights in both implementations."""

    ours: Llama
    theirs: LlamaForCausalLM

    def their_logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.theirs(ids[None]).logits[0]

    def our_logits(self, ids: torch.Tensor) -> torch.Tensor:
        context = PackedContext([len(ids)])
        return self.ours.logits(self.ours(ids, context.positions(), context))


class CachedSequences(AttentionContext):
    """Some tokens of several sequences, each with its keys and values in one growing tensor per layer."""

    def __init__(self, config: LlamaConfig, num_sequences: int) -> None:
        empty = torch.empty(0, config.num_key_value_heads, config.head_dim)
        self.keys = [[empty] * num_sequences for _ in range(config.num_hidden_layers)]
        self.values = [[empty] * num_sequences for _ in range(config.num_hidden_layers)]
        self.batch: list[tuple[int, int]] = []

    def schedule(self, batch: list[tuple[int, int]]) -> torch.Tensor:
        """Take the next step's (sequence, number of new tokens) pairs; their positions, end to end."""
        self.batch = batch
        starts = [len(self.keys[0][sequence]) for sequence, _ in batch]
        return torch.cat([torch.arange(s, s + n) for s, (_, n) in zip(starts, batch, strict=True)])

    def attend(
        self,
        layer: int,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        *,
        scale: float,
        reach: Reach | None = None,
    ) -> torch.Tensor:
        assert reach is None
        sizes = [n for _, n in self.batch]
        parts = zip(self.batch, q_THD.split(sizes), k_TKD.split(sizes), v_TKD.split(sizes), strict=True)
        return torch.cat([self._attend_one(layer, sequence, q, k, v, scale) for (sequence, _), q, k, v in parts])

    def _attend_one(
        self, layer: int, sequence: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        k = self.keys[layer][sequence] = torch.cat((self.keys[layer][sequence], k))
        v = self.values[layer][sequence] = torch.cat((self.values[layer][sequence], v))
        return causal_attention(q[None], k[None], v[None], scale=scale)[0]


@pytest.fixture
def tiny_config() -> LlamaConfig:
    return LlamaConfig(**SHAPE)


@pytest.fixture
def tiny_model(tiny_config: LlamaConfig) -> Llama:
    model = Llama.from_config(tiny_config)
    model.initialize(seed=0)
    return model.eval()


@pytest.fixture
def cached_sequences() -> type[CachedSequences]:
    return CachedSequences


@pytest.fixture
def make_pair() -> Any:
    """Builds a `Pair` from changes to `SHAPE` in transformers' spelling."""
    transformers = pytest.importorskip("transformers")

    def make(seed: int = 0, **changes: Any) -> Pair:
        torch.manual_seed(seed)
        their_config = transformers.LlamaConfig(**{**SHAPE, **changes})
        theirs = transformers.LlamaForCausalLM(their_config).eval()
        for name, parameter in theirs.named_parameters():
            if name.endswith(("bias", "norm.weight", "layernorm.weight")):  # the defaults 0 and 1 would hide a mistake
                torch.nn.init.normal_(parameter, 1.0, 0.2)
        ours = Llama.from_config(LlamaConfig.from_hf(their_config.to_dict())).eval()
        weights = theirs.state_dict()
        if ours.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        ours.load_state_dict(weights, strict=True)
        return Pair(ours, theirs)

    return make
