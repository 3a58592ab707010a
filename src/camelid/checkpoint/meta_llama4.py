"""Meta's folders of Llama 4: the language model in them, its fused tensors taken apart and its experts joined."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError, NotFoundError, did_you_mean
from camelid.checkpoint.base import TensorInfo
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.meta_folder import MetaFolder
from camelid.checkpoint.meta_llama4_params import Shapes, config_from_params, moe_args
from camelid.checkpoint.meta_params import PARAMS, read_count
from camelid.model.llama4_config import Llama4Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from camelid.checkpoint.meta_llama4_layout import Group, Sizes

_EXPERTS: Final = "model.layers.{layer}.feed_forward.experts.down_proj"
_DENSE: Final = "model.layers.{layer}.feed_forward.down_proj.weight"
_LEFT_OPEN: Final = (
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attn_temperature_tuning",
)
_STATED: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_local_experts",
    "layers_with_experts",
    "layers_with_rope",
    "attention_chunk_size",
    "use_qk_norm",
    "rms_norm_eps",
    "rope_parameters",
)


def is_llama4(params: Mapping[str, Any]) -> bool:
    """Whether a `params.json` is a Llama 4's, by the settings that only it has."""
    return "moe_args" in params or "nope_layer_interval" in params


class MetaLlama4Checkpoint(MetaFolder):
    """An opened folder of a Llama 4, whose parts for images are left out with a warning."""

    def _describe(self) -> None:
        from camelid.checkpoint.meta_llama4_layout import GROUPS, IMAGES, LEFT_OUT

        group_of = {name: group for group in GROUPS for name in group.meta}
        self._sources: dict[str, tuple[Group, str, int]] = {}
        first, images = self._shards[0], 0
        for name in sorted({*first.tensors, *first.opaque}):
            pattern, layer = split_layer(name)
            if name.startswith(IMAGES):
                images += 1
                continue
            if pattern in LEFT_OUT:
                continue
            group = group_of.get(pattern)
            if group is None or name in first.opaque:
                raise FormatError(f"the tensor {name[:200]!r} has no place in a Llama 4", where=first.path)
            for other in group.meta:
                if other.format(layer=layer) not in first.tensors:
                    raise FormatError(f"there is no tensor '{other.format(layer=layer)}'", where=first.path)
            for which, renamed in enumerate(group.huggingface):
                self._sources[renamed.format(layer=layer)] = (group, layer, which)
        if images:
            warnings.warn(
                f"{self.path}: the {images} tensors that read images are left out; the model reads text only",
                UserWarning,
                stacklevel=4,
            )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `params.json` and the tensors say; a `config.json` beside them adds what they leave open.

        Raises:
            ConfigError: a model without experts, or a setting that no Llama 4 has.
            FormatError: the files contradict each other.
        """
        config = config_from_params(self._params, self._shapes(), self.path / PARAMS)
        return self._completed(config, Llama4Config, _STATED, _LEFT_OPEN)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the language model by its Hugging Face name, joined.

        Raises:
            FormatError: the shards' parts do not fit together.
        """
        infos = {}
        for name, (group, layer, _) in self._sources.items():
            held = [shard.tensors[meta.format(layer=layer)] for meta in group.meta for shard in self._shards]
            shape, dtype = self._joined_shape(name), held[0].dtype
            num_bytes = sum(part.num_bytes for part in held) // len(group.huggingface)
            infos[name] = TensorInfo(name, shape, dtype, num_bytes)
        return infos

    def read(self, name: str) -> Tensor:
        """One tensor."""
        group, layer, which = self._source(name)
        parts = [[shard.read(meta.format(layer=layer)) for shard in self._shards] for meta in group.meta]
        return group.join(parts, which, self._sizes)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        group, layer, _ = self._source(name)
        for shard in self._shards:
            for meta in group.meta:
                shard.release(meta.format(layer=layer))

    @cached_property
    def _sizes(self) -> Sizes:
        from camelid.checkpoint.meta_llama4_layout import Sizes

        where = self.path / PARAMS
        return Sizes(
            num_heads=read_count(self._params, "n_heads", "num_attention_heads", where),
            num_key_value_heads=read_count(self._params, "n_kv_heads", "num_key_value_heads", where),
            num_experts=read_count(moe_args(self._params, where), "num_experts", "num_hidden_layers", where),
        )

    def _joined_shape(self, name: str) -> tuple[int, ...]:
        """By joining tensors that have a shape and no contents."""
        import torch

        group, layer, which = self._source(name)
        described = [[shard.tensors[meta.format(layer=layer)] for shard in self._shards] for meta in group.meta]
        if len({(part.shape, part.dtype) for part in described[0]}) > 1 or not all(
            len(part.shape) in (1, 2) for parts in described for part in parts
        ):
            raise FormatError(f"the shards' parts of '{name}' do not fit together", where=self.path)
        parts = [[torch.empty(part.shape, device="meta") for part in parts] for parts in described]
        try:
            return tuple(group.join(parts, which, self._sizes).shape)
        except (RuntimeError, IndexError, ZeroDivisionError) as error:  # torch's word for shapes that do not fit
            raise FormatError(
                f"the parts of '{name}' do not fit together, or not the heads and experts of {PARAMS}: "
                f"{sorted({part.shape for parts in described for part in parts})}",
                where=self.path,
            ) from error

    def _shapes(self) -> Shapes:
        layers = read_count(self._params, "n_layers", "num_hidden_layers", self.path / PARAMS)
        if layers > len(self._sources):
            raise FormatError(f"n_layers is {layers}, but there are {len(self._sources)} tensors", where=self.path)
        sparse = [layer for layer in range(layers) if _EXPERTS.format(layer=layer) in self._sources]
        dense = next((name for i in range(layers) if (name := _DENSE.format(layer=i)) in self._sources), None)
        if not sparse or "model.embed_tokens.weight" not in self._sources:
            raise FormatError("there are no experts, or no embedding", where=self.path)
        embedding = self.tensors["model.embed_tokens.weight"]
        return Shapes(
            vocab_size=embedding.shape[0],
            hidden_size=embedding.shape[1],
            dense_width=self.tensors[dense].shape[1] if dense else None,
            expert_width=self.tensors[_EXPERTS.format(layer=sparse[0])].shape[1],
            layers_with_experts=sparse,
            tied="lm_head.weight" not in self._sources,
            dtype=embedding.format,
        )

    def _source(self, name: str) -> tuple[Group, str, int]:
        source = self._sources.get(name)
        if source is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self._sources))
        return source
