"""How much arithmetic a token of training costs. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camelid.model.config import ModelConfig


def training_flops_per_token(config: ModelConfig, mean_seen: float) -> float:
    """6·P + 6·L·S·d for one token of training: P active parameters, L layers, S tokens seen, d width of all heads.

    6·P covers the products with the weights (one multiply and one add, forward and twice backward); an embedding that
    is not tied is only looked up and does not count. Attention over S tokens costs 12·S·d per layer and half of it
    under a causal mask. Source: Chowdhery et al. 2022, arXiv 2204.02311, appendix B; Kaplan et al. 2020, arXiv
    2001.08361, §2.1.

    Args:
        config: the model's shape.
        mean_seen: S, what a token of the packed sequences finds on average (`camelid.plan.workload.mean_seen`).
    """
    num_multiplied = config.num_active_parameters
    if not config.tie_word_embeddings:
        num_multiplied -= config.vocab_size * config.hidden_size
    width = config.num_attention_heads * config.head_dim
    return 6 * num_multiplied + 6 * config.num_hidden_layers * mean_seen * width
