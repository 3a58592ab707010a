"""Which tensors a Llama 4 has in Meta's files, and what each is made of; `meta_save` writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.errors import ConfigError
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.meta_llama4_layout import GROUPS, Sizes
from camelid.checkpoint.meta_llama4_params import params_from_config
from camelid.checkpoint.meta_plan import PlannedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from camelid.checkpoint.meta_llama4_layout import Group
    from camelid.checkpoint.weights import Weight
    from camelid.model.llama4_config import Llama4Config

__all__ = ["cut_sizes", "params_from_config", "plan"]


def cut_sizes(config: Llama4Config) -> dict[str, int]:
    """What shards cut: what it is → how many there are of it."""
    return {
        "key/value heads": config.num_key_value_heads,
        "columns of an expert": config.intermediate_size,
        "rows of a feed-forward layer": config.intermediate_size_mlp,
        "tokens of the vocabulary": config.vocab_size,
    }


def plan(weights: Sequence[Weight], config: Llama4Config) -> list[PlannedTensor]:
    """Every tensor of Meta's files, in the model's order.

    Raises:
        ConfigError: tensors that one of Meta's is made of have different dtypes.
    """
    sizes = Sizes(config.num_attention_heads, config.num_key_value_heads, config.num_local_experts)
    sparse = {str(layer) for layer in config.layers_with_experts}
    by_name = {weight.name: weight for weight in weights}
    planned = []
    for weight in weights:
        pattern, layer = split_layer(weight.name)
        for group in GROUPS:
            if group.huggingface[0] == pattern and group.with_experts in (None, layer in sparse):
                sources = tuple(by_name[name.format(layer=layer)] for name in group.huggingface)
                if len({source.dtype for source in sources}) > 1:
                    raise ConfigError("tensors of different dtypes are one in Meta's files", where=weight.name)
                planned += [
                    PlannedTensor(name.format(layer=layer), sources, _cut(group, which, sizes))
                    for which, name in enumerate(group.meta)
                ]
    return planned


def _cut(group: Group, which: int, sizes: Sizes) -> Callable[[Sequence[Tensor], int], Iterator[Tensor]]:
    def cut(tensors: Sequence[Tensor], count: int) -> Iterator[Tensor]:
        return (group.cut(tensors, which, shard, count, sizes) for shard in range(count))

    return cut
