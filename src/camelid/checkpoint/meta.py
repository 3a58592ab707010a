"""Meta's folders: `params.json` and `consolidated.NN.pth`, one file or several model-parallel shards; LLaMA 1 to 3.3.

Each shard holds a slice of every matrix; joined they are the model. Queries and keys rotate adjacent pairs of a head's
dimensions, Hugging Face's the two halves, so their rows are reordered (llama-models, models/llama3/model.py;
transformers, models/llama/convert_llama_weights_to_hf.py). A tensor is joined when it is read and not before.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError, NotFoundError, did_you_mean
from camelid.checkpoint.base import TensorInfo
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.meta_folder import MetaFolder
from camelid.checkpoint.meta_params import PARAMS, Shapes, config_from_params
from camelid.model.llama_config import LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

EMBEDDING: Final = "model.embed_tokens.weight"
OUTPUT: Final = "lm_head.weight"

NAMES: Final[Mapping[str, tuple[str, int | None]]] = {
    "tok_embeddings": ("model.embed_tokens", 0),
    "layers.{layer}.attention.wq": ("model.layers.{layer}.self_attn.q_proj", 0),
    "layers.{layer}.attention.wk": ("model.layers.{layer}.self_attn.k_proj", 0),
    "layers.{layer}.attention.wv": ("model.layers.{layer}.self_attn.v_proj", 0),
    "layers.{layer}.attention.wo": ("model.layers.{layer}.self_attn.o_proj", 1),
    "layers.{layer}.feed_forward.w1": ("model.layers.{layer}.mlp.gate_proj", 0),
    "layers.{layer}.feed_forward.w3": ("model.layers.{layer}.mlp.up_proj", 0),
    "layers.{layer}.feed_forward.w2": ("model.layers.{layer}.mlp.down_proj", 1),
    "layers.{layer}.attention_norm": ("model.layers.{layer}.input_layernorm", None),
    "layers.{layer}.ffn_norm": ("model.layers.{layer}.post_attention_layernorm", None),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}
"""Meta's name → Hugging Face's, and the dimension that shards split; None: every shard has the whole. The embedding
is split by columns (1) before Llama 3, which only its shape tells."""

ROTATED: Final = frozenset(
    {"model.layers.{layer}.self_attn.q_proj.weight", "model.layers.{layer}.self_attn.k_proj.weight"}
)
"""Hugging Face names of matrices whose rows Meta has in another order."""

DERIVED: Final = frozenset({"rope.freqs"})
"""Tensors that follow from the config."""


class MetaCheckpoint(MetaFolder):
    """An opened folder as Meta releases it.

    Raises:
        NotFoundError: `params.json` or a shard is missing.
        FormatError: a file is damaged, would run code, or contradicts another.
        ConfigError: it holds a model of another layout: a quantised release.
    """

    def _describe(self) -> None:
        self._sources = self._rename()

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `params.json` and the tensors say; a `config.json` beside them adds what they leave open.

        Raises:
            ConfigError: a model of another layout.
            FormatError: the files contradict each other.
        """
        config = config_from_params(self._params, self._shapes(), self.path / PARAMS)
        return self._completed(config, LlamaConfig, _STATED, LEFT_OPEN)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name, joined; an output matrix equal to the embedding is left out."""
        infos = {name: self._info(name) for name in self._sources}
        if OUTPUT in infos and self._is_tied:
            del infos[OUTPUT]
        return infos

    def read(self, name: str) -> Tensor:
        """One tensor; a view into the file if one shard holds it all and its rows are in order."""
        import torch

        source, axis = self._source(name)
        parts = [shard.read(source) for shard in (self._shards if axis is not None else self._shards[:1])]
        tensor = parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, dim=axis)
        return halves(tensor, self.config["head_dim"]) if is_rotated(name) else tensor

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        source, _ = self._source(name)
        for shard in self._shards:
            shard.release(source)

    def _rename(self) -> dict[str, tuple[str, int | None]]:
        """Hugging Face name → Meta's, and the dimension that the shards split."""
        first = self._shards[0].tensors
        self._refuse_bytes()
        sources = {}
        for name in first:
            if name in DERIVED:
                continue
            pattern, layer = split_layer(name)
            known = NAMES.get(pattern.removesuffix(".weight"))
            if known is None or not name.endswith(".weight"):
                raise FormatError(
                    f"the tensor {name[:200]!r} has no place in a Llama",
                    where=self._shards[0].path,
                    hint="it may be a variant that only its own tools read",
                )
            renamed = known[0].format(layer=layer) + ".weight"
            sources[renamed] = (name, self._split_axis(name, known[1]))
        for needed in (EMBEDDING, "model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.gate_proj.weight"):
            if needed not in sources:
                raise FormatError(f"there is no tensor for '{needed}'", where=self._shards[0].path)
        return sources

    def _split_axis(self, name: str, axis: int | None) -> int | None:
        """The dimension in which the shards' parts are joined, once they are known to fit together."""
        shapes = [shard.tensors[name].shape for shard in self._shards]
        dtypes = {shard.tensors[name].dtype for shard in self._shards}
        if len(set(shapes)) > 1 or len(dtypes) > 1 or len(shapes[0]) != (1 if axis is None else 2):
            raise FormatError(
                f"the shards' parts of '{name}' do not fit together: {sorted(set(shapes))}, {sorted(dtypes)}",
                where=self.path,
            )
        if name == "tok_embeddings.weight" and shapes[0][1] != self._params.get("dim"):
            return 1
        return axis

    def _info(self, name: str) -> TensorInfo:
        source, axis = self._sources[name]
        part = self._shards[0].tensors[source]
        count = 1 if axis is None else len(self._shards)
        shape = tuple(size * count if i == axis else size for i, size in enumerate(part.shape))
        return TensorInfo(name, shape, part.dtype, part.num_bytes * count)

    def _shapes(self) -> Shapes:
        embedding = self._info(EMBEDDING)
        return Shapes(
            vocab_size=embedding.shape[0],
            hidden_size=embedding.shape[1],
            intermediate_size=self._info("model.layers.0.mlp.gate_proj.weight").shape[0],
            key_rows=self._info("model.layers.0.self_attn.k_proj.weight").shape[0],
            tied=self._is_tied,
            dtype=embedding.format,
        )

    @cached_property
    def _is_tied(self) -> bool:
        """Whether the output matrix is the embedding: left out, or bit for bit the same."""
        import torch

        if OUTPUT not in self._sources:
            return True
        one, other = self._info(EMBEDDING), self._info(OUTPUT)
        if (one.shape, one.format) != (other.shape, other.format):
            return False
        source, axis = self._source(EMBEDDING)
        parts = [shard.read(source)[:1] for shard in (self._shards if axis == 1 else self._shards[:1])]
        if not torch.equal(torch.cat(parts, dim=1), self._shards[0].read(self._source(OUTPUT)[0])[:1]):
            return False
        return torch.equal(self.read(EMBEDDING), self.read(OUTPUT))

    def _source(self, name: str) -> tuple[str, int | None]:
        source = self._sources.get(name)
        if source is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self._sources))
        return source


_STATED: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)
LEFT_OPEN: Final = (
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that `params.json` does not state and a `config.json` beside it may."""


def is_rotated(name: str) -> bool:
    """Whether rows of a tensor of this Hugging Face name are rotated in pairs."""
    return split_layer(name)[0] in ROTATED


def halves(tensor_RE: Tensor, head_dim: int) -> Tensor:
    """Rows from Meta's order to Hugging Face's: row r·D/2 + i of a head is row 2i + r of it."""
    return tensor_RE.view(-1, head_dim // 2, 2, tensor_RE.shape[1]).transpose(1, 2).reshape(tensor_RE.shape)


def pairs(tensor_RE: Tensor, head_dim: int) -> Tensor:
    """The inverse of `halves`."""
    return tensor_RE.view(-1, 2, head_dim // 2, tensor_RE.shape[1]).transpose(1, 2).reshape(tensor_RE.shape)
