"""llama2.c's oldest .bin file: seven numbers, then float32 weights (karpathy/llama2.c, export.py, version 0).

The numbers are dim, hidden_dim, layers, heads, kv heads, vocabulary (negative: the output matrix is its own) and
context. The weights follow kind by kind, each kind for all layers: embedding, attention norms, wq, wk, wv, wo, feed
forward norms, w1, w2, w3, last norm, two tables of rotary angles that nobody reads, and the output matrix if untied.
"""

from __future__ import annotations

import math
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError, TokenizerError, did_you_mean
from camelid.checkpoint.base import Checkpoint, TensorInfo
from camelid.checkpoint.meta import halves, is_rotated
from camelid.checkpoint.pages import map_privately, release_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from mmap import mmap
    from pathlib import Path

    from torch import Tensor

    from camelid.codecs.packed import PackedTensor
    from camelid.tokenizer import Tokenizer

HEADER = struct.Struct("<7i")

TOKENIZER = "tokenizer.model"
"""Llama 2's SentencePiece model, which a folder with such a file holds too; the .bin itself has no vocabulary."""


class Llama2CCheckpoint(Checkpoint):
    """An opened llama2.c file; its tensors are views into a private memory map, queries and keys excepted.

    Raises:
        FormatError: the header does not describe a file of this size.
    """

    format = "llama2.c"

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            if not is_llama2_c(head, size):
                raise FormatError("the first seven numbers do not describe a model of this file's size", where=path)
            self._map: mmap | None = map_privately(file)
        self._dim, self._hidden, self._layers, self._heads, self._kv_heads, vocab, self._context = HEADER.unpack(head)
        self._vocab, self._tied = abs(vocab), vocab > 0

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """A Llama's; the file leaves the norms' epsilon and rope's base to the program that reads it."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self._vocab,
            "hidden_size": self._dim,
            "intermediate_size": self._hidden,
            "num_hidden_layers": self._layers,
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._kv_heads,
            "head_dim": self._dim // self._heads,
            "max_position_embeddings": self._context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": self._tied,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            # The models were trained on stories that follow each other behind a begin token.
            "eos_token_id": [1, 2],
        }

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""
        return {
            name: TensorInfo(name, shape, "float32", 4 * math.prod(shape)) for name, (shape, _) in self._places.items()
        }

    def read(self, name: str) -> Tensor | PackedTensor:
        """One tensor; of queries and keys the rows are put in Hugging Face's order, halves instead of pairs."""
        import torch

        place = self._places.get(name)
        if place is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self._places))
        assert self._map is not None, f"{self.path} is closed"
        shape, offset = place
        tensor = torch.frombuffer(self._map, dtype=torch.float32, count=math.prod(shape), offset=offset).view(shape)
        if is_rotated(name):
            tensor = halves(tensor, self._dim // self._heads)
        return tensor

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        shape, offset = self._places[name]
        if self._map is not None:
            release_pages(self._map, offset, 4 * math.prod(shape))

    def load_tokenizer(self) -> Tokenizer:
        """The SentencePiece model beside the file.

        Raises:
            TokenizerError: there is none.
        """
        from camelid.tokenizer import load_tokenizer

        beside = self.path.parent / TOKENIZER
        if not beside.exists():
            raise TokenizerError(
                f"a llama2.c file holds no vocabulary, and there is no {TOKENIZER} beside it",
                where=self.path,
                hint=f"put Llama 2's {TOKENIZER} into the same folder",
            )
        return load_tokenizer(beside)

    @property
    def chat_template(self) -> str | None:
        """None: the format has no place for one."""
        return None

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Empty: the format has no place for it."""
        return {}

    def close(self) -> None:
        """Let go of the file; the map itself lives as long as a tensor looks into it."""
        self._map = None

    @cached_property
    def _places(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Hugging Face name → shape and offset in bytes."""
        places = {}
        offset = HEADER.size
        for name, shape in self._order():
            if name:
                places[name] = (shape, offset)
            offset += 4 * math.prod(shape)
        return places

    def _order(self) -> Iterator[tuple[str | None, tuple[int, ...]]]:
        """Name and shape of what follows the header, in the file's order; None for what has no name any more."""
        dim, head_dim = self._dim, self._dim // self._heads
        kv_dim = head_dim * self._kv_heads
        per_layer = {
            "input_layernorm": (dim,),
            "self_attn.q_proj": (dim, dim),
            "self_attn.k_proj": (kv_dim, dim),
            "self_attn.v_proj": (kv_dim, dim),
            "self_attn.o_proj": (dim, dim),
            "post_attention_layernorm": (dim,),
            "mlp.gate_proj": (self._hidden, dim),
            "mlp.down_proj": (dim, self._hidden),
            "mlp.up_proj": (self._hidden, dim),
        }
        yield "model.embed_tokens.weight", (self._vocab, dim)
        for kind, shape in per_layer.items():
            for layer in range(self._layers):
                yield f"model.layers.{layer}.{kind}.weight", shape
        yield "model.norm.weight", (dim,)
        yield None, (self._context, head_dim)
        if not self._tied:
            yield "lm_head.weight", (self._vocab, dim)


def is_llama2_c(head: bytes, size: int) -> bool:
    """Whether the first bytes of a file describe a llama2.c checkpoint of just the file's size."""
    if len(head) < HEADER.size:
        return False
    dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack(head[: HEADER.size])
    if min(dim, hidden, layers, heads, kv_heads, context, abs(vocab)) < 1 or dim % heads or heads % kv_heads:
        return False
    kv_dim, head_dim = dim // heads * kv_heads, dim // heads
    block = 2 * dim + 2 * dim * dim + 2 * kv_dim * dim + 3 * dim * hidden
    numbers = abs(vocab) * dim * (1 if vocab > 0 else 2) + layers * block + dim + context * head_dim
    return bool(size == HEADER.size + 4 * numbers)
