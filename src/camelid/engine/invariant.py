"""Forward passes whose result for a token hangs on its own sequence alone, to the last bit.

The native kernels of `camelid.kernels` compute so by themselves: `rounds_alone` says for which models they do all the
work. For the others there is `InvariantContext`, at a cost (docs/decisions/0012): torch's matrix products round
differently with the number of rows (on the CPU of that page, 1, 2, 3, 5, 6, 7, 9, 10 or 11 rows give other last bits
than 64, and all multiples of 4 the same), and its attention with the number of queries and keys. So rows are padded to
multiples of 4, and attention runs in tiles of one shape: `TILE` queries against `BLOCK` keys at positions that are
multiples of it, summed in the order of the blocks. What a query must not see adds exact zeros.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, G = H / K, D head dimension, N
tiles of queries, M = TILE · G rows of a tile, J blocks of keys, L = BLOCK keys.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from camelid.base.errors import EngineError
from camelid.engine.kv_cache import PagedContext
from camelid.kernels.attention import vector_width
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.engine.kv_cache import PagedKVCache, Rows, Span
    from camelid.model.attention import Reach
    from camelid.model.base import LanguageModel
    from camelid.model.image_memory import ImageMemory

ROWS = 4
"""Rows of a product are padded to multiples of this."""

TILE, BLOCK = 4, 64

MAX_PAIRS = 512
"""Tiles times blocks that are scored at once."""


def rounds_alone(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether nothing in a model's steps rounds with the batch: dense and in fp32, all of it in native kernels."""
    config, width = model.config, vector_width()
    return (
        width is not None
        and device.type == "cpu"
        and dtype == torch.float32
        and config.head_dim % width == 0
        and config.hidden_size % width == 0
        and config.image_token_id is None
        and not any(isinstance(module, Matrix) and module.packed is not None for module in model.modules())
    )


def check_rounds_alone_in_tiles(model: LanguageModel) -> None:
    """See that nothing in a model's steps rounds with the batch even in tiles.

    Raises:
        EngineError: something does.
    """
    if model.config.image_token_id is not None:
        raise EngineError("what a model reads of images rounds with the batch", where="batch_invariant")
    if any(isinstance(module, Matrix) and module.packed is not None for module in model.modules()):
        raise EngineError(
            "products with packed weights round with the batch",
            where="batch_invariant",
            hint="load the model with packed=False",
        )


def num_padded(num_rows: int) -> int:
    """The rows with their padding."""
    return -(-num_rows // ROWS) * ROWS


def _padded(numbers_T: Tensor) -> Tensor:
    return F.pad(numbers_T, (0, num_padded(len(numbers_T)) - len(numbers_T)))


class InvariantContext(PagedContext):
    """A `PagedContext` that takes padded rows behind the tokens, and attends in tiles.

    Rows of padding follow the hidden states as well.
    """

    def __init__(
        self,
        cache: PagedKVCache,
        query_lens: Sequence[int],
        cached_lens: Sequence[int],
        block_tables: Sequence[list[int]],
        memories: Sequence[ImageMemory | None] | None = None,
        wanted_lens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(cache, query_lens, cached_lens, block_tables, memories, wanted_lens)
        self._num_tokens = len(self.positions)
        self.positions = _padded(self.positions)
        if self.wanted_rows is not None:
            self.wanted_rows = _padded(self.wanted_rows)

    def paged_place(self) -> None:
        """No block runs in one call here: its rows are padded."""

    def attend(
        self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, reach: Reach | None = None
    ) -> Tensor:
        """Write the new keys and values into their slots, then attend within each sequence, its past included."""
        num_tokens = self._num_tokens
        keys, values = self._cache.write(layer, self._slots, k_TKD[:num_tokens], v_TKD[:num_tokens])
        out_THD = torch.zeros_like(q_THD)
        for span in self._spans:
            for first in range(0, span.query_len, tiles := self._tiles_at_once(span) * TILE):
                rows = range(span.start + first, span.start + min(first + tiles, span.query_len))
                position = span.cached_len + first
                q_SHD = q_THD[rows.start : rows.stop]
                out_THD[rows.start : rows.stop] = self._attend(span, q_SHD, position, keys, values, scale, reach)
        return out_THD

    def _tiles_at_once(self, span: Span) -> int:
        return max(MAX_PAIRS // -(-span.total // BLOCK), 1)

    def _attend(
        self, span: Span, q_SHD: Tensor, position: int, keys: Rows, values: Rows, scale: float, reach: Reach | None
    ) -> Tensor:
        """Consecutive queries of one sequence, the first at `position`."""
        num_queries, num_heads, dim = q_SHD.shape
        num_tiles = -(-num_queries // TILE)
        num_blocks = -(-(position + num_queries) // BLOCK)
        slots = self._slots_of(span, num_blocks * BLOCK)
        k_KJLD, v_KJLD = (x[slots].view(num_blocks, BLOCK, -1, dim).permute(2, 0, 1, 3) for x in (keys, values))
        num_kv = k_KJLD.shape[0]
        group = num_heads // num_kv
        q = F.pad(q_SHD, (0, 0, 0, 0, 0, num_tiles * TILE - num_queries))
        q_KNMD = q.view(num_tiles, TILE, num_kv, group, dim).permute(2, 0, 1, 3, 4).reshape(num_kv, num_tiles, -1, dim)

        pairs = (num_kv, num_tiles, num_blocks)
        q_PMD = q_KNMD[:, :, None].expand(*pairs, -1, -1).reshape(-1, TILE * group, dim)
        k_PLD, v_PLD = (x[:, None].expand(*pairs, -1, -1).reshape(-1, BLOCK, dim) for x in (k_KJLD, v_KJLD))
        scores_PML = torch.bmm(q_PMD, k_PLD.transpose(1, 2)) * scale
        scores = scores_PML.view(*pairs, TILE, group, BLOCK)
        hidden_NJTL = self._hidden(position, num_tiles, num_blocks, reach)
        scores = scores.masked_fill(hidden_NJTL[None, :, :, :, None], -math.inf)
        best = scores.amax((2, 5), keepdim=True)
        weights = (scores - best).exp()
        sums = weights.sum(-1)
        parts = torch.bmm(weights.view(-1, TILE * group, BLOCK), v_PLD).view(*pairs, TILE, group, dim)
        total, out = sums[:, :, 0], parts[:, :, 0]
        for block in range(1, num_blocks):
            total, out = total + sums[:, :, block], out + parts[:, :, block]
        out_KNTGD = out / total[..., None]
        return out_KNTGD.permute(1, 2, 0, 3, 4).reshape(-1, num_heads, dim)[:num_queries]

    def _slots_of(self, span: Span, num_slots: int) -> Tensor:
        """Slots of the first positions; past the sequence's end its first token's, which nothing sees."""
        size = self._cache.block_size
        positions = torch.arange(num_slots, device=self._cache.device)
        positions = positions.where(positions < span.total, 0)
        table = torch.tensor(span.block_table, device=self._cache.device)
        return table[positions // size] * size + positions % size

    def _hidden(self, position: int, num_tiles: int, num_blocks: int, reach: Reach | None) -> Tensor:
        """Which keys each query does not see: bool [N, J, TILE, L]."""
        device = self._cache.device
        queries = (position + torch.arange(num_tiles * TILE, device=device)).view(num_tiles, 1, TILE, 1)
        keys = torch.arange(num_blocks * BLOCK, device=device).view(1, num_blocks, 1, BLOCK)
        hidden = keys > queries
        return hidden if reach is None else hidden | (keys < reach.first_key(queries))
