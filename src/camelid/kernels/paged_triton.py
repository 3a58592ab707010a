"""The kernels of `camelid.kernels.paged_cuda`: parts of a sequence attend side by side, then their results are joined.

Flash decoding (Dao et al. 2023, "Flash-Decoding for long-context inference") over a block table: a program takes all
query heads of one key/value head of one sequence, and one part of its keys, in tiles with a running softmax (Milakov
and Gimelshein 2018, arXiv 1805.02867). Imported only where Triton is installed.

Shape suffixes: B sequences, N blocks of a table, H query heads, K key/value heads, G = H / K, D head dimension, P
parts, L keys of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16
"""Rows and columns of the smallest product that tensor cores take: query heads and their dimensions are padded."""

MOST_KEYS, MOST_BYTES = 64, 16384
"""Keys that are scored at once, and bytes of them: with the values, and twice for the next ones, they have to fit into
a processor's own memory of 100 KB (compute capability 8.6) and up."""

PROGRAMS = 256
"""Parts are made until there are as many programs: a device has 80 to 150 processors, and programs differ in length."""


@torch.library.custom_op("camelid::paged_attention", mutates_args=())
def paged_attention(
    q_BHD: Tensor,
    keys: Tensor,
    values: Tensor,
    tables_BN: Tensor,
    positions_B: Tensor,
    first_keys_B: Tensor | None,
    block_size: int,
    scale: float,
) -> Tensor:
    """See `camelid.kernels.paged_cuda.PagedAttention`."""
    num_sequences, num_heads, head_dim = q_BHD.shape
    num_kv, num_blocks = keys.shape[1], tables_BN.shape[1]
    padded_dim = max(triton.next_power_of_2(head_dim), LEAST)
    tile = max(min(MOST_KEYS, MOST_BYTES // (padded_dim * keys.itemsize)), LEAST)
    num_tiles = triton.cdiv(num_blocks * block_size, tile)
    num_parts = max(min(num_tiles, PROGRAMS // (num_sequences * num_kv)), 1)
    q_BHD = q_BHD.contiguous()
    parts_BHPD = q_BHD.new_empty(num_sequences, num_heads, num_parts, head_dim, dtype=torch.float32)
    sums_BHP = parts_BHPD.new_empty(parts_BHPD.shape[:3])
    out_BHD = torch.empty_like(q_BHD)
    with torch.cuda.device_of(q_BHD):  # type: ignore[no-untyped-call]
        _attend_to_part[num_sequences, num_kv, num_parts](
            q_BHD,
            keys,
            values,
            tables_BN,
            positions_B,
            first_keys_B if first_keys_B is not None else positions_B,
            parts_BHPD,
            sums_BHP,
            scale,
            tables_BN.stride(0),
            tables_BN.stride(1),
            positions_B.stride(0),
            first_keys_B.stride(0) if first_keys_B is not None else 0,
            num_kv,
            num_parts,
            triton.cdiv(num_tiles, num_parts),
            GROUP=num_heads // num_kv,
            HEADS=max(triton.next_power_of_2(num_heads // num_kv), LEAST),
            DIM=head_dim,
            PADDED_DIM=padded_dim,
            BLOCK_SIZE=block_size,
            TILE=tile,
            HAS_FIRST=first_keys_B is not None,
            num_stages=2,
        )
        _join_parts[num_sequences, num_heads](
            parts_BHPD,
            sums_BHP,
            out_BHD,
            num_parts,
            DIM=head_dim,
            PADDED_DIM=padded_dim,
            PARTS=triton.next_power_of_2(num_parts),
        )
    return out_BHD


@paged_attention.register_fake
def _(
    q_BHD: Tensor,
    keys: Tensor,
    values: Tensor,
    tables_BN: Tensor,
    positions_B: Tensor,
    first_keys_B: Tensor | None,
    block_size: int,
    scale: float,
) -> Tensor:
    return torch.empty_like(q_BHD, memory_format=torch.contiguous_format)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_to_part(  # type: ignore[no-untyped-def]
    q,
    keys,
    values,
    tables,
    positions,
    first_keys,
    parts,
    sums,
    scale,
    table_stride,
    block_stride,
    position_stride,
    first_stride,
    num_kv,
    num_parts,
    tiles_of_part,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    """One part's attended values, and the logarithm of the sum of its exponentials, of the heads of one group."""
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, PADDED_DIM)
    is_head = heads < GROUP
    is_dim = dims < DIM
    rows = sequence * num_kv * GROUP + kv_head * GROUP + heads
    q_GD = tl.load(q + rows[:, None] * DIM + dims[None, :], mask=is_head[:, None] & is_dim[None, :], other=0.0)

    last = tl.load(positions + sequence * position_stride)
    first = last * 0
    if HAS_FIRST:
        first = tl.maximum(tl.load(first_keys + sequence * first_stride), 0)
    begin = tl.maximum(part * tiles_of_part * TILE, first // TILE * TILE)
    end = tl.minimum((part + 1) * tiles_of_part * TILE, last + 1)

    best_G = tl.full([HEADS], float("-inf"), tl.float32)
    total_G = tl.zeros([HEADS], tl.float32)
    out_GD = tl.zeros([HEADS, PADDED_DIM], tl.float32)
    for start in range(begin, end, TILE):
        places_L = start + tl.arange(0, TILE)
        is_seen_L = (places_L <= last) & (places_L >= first)
        blocks_L = tl.load(
            tables + sequence * table_stride + (places_L // BLOCK_SIZE) * block_stride, mask=is_seen_L, other=0
        )
        slots_L = blocks_L * BLOCK_SIZE + places_L % BLOCK_SIZE
        offsets_LD = (slots_L[:, None] * num_kv + kv_head) * DIM + dims[None, :]
        is_read_LD = is_seen_L[:, None] & is_dim[None, :]
        k_LD = tl.load(keys + offsets_LD, mask=is_read_LD, other=0.0)
        v_LD = tl.load(values + offsets_LD, mask=is_read_LD, other=0.0)
        scores_GL = tl.dot(q_GD, tl.trans(k_LD), input_precision="ieee") * scale
        scores_GL = tl.where(is_seen_L[None, :], scores_GL, float("-inf"))
        # The first tile of a part may hold nothing that is seen: then there is no best yet to subtract.
        new_best_G = tl.maximum(best_G, tl.max(scores_GL, 1))
        safe_G = tl.where(new_best_G == float("-inf"), 0.0, new_best_G)
        kept_G = tl.exp(best_G - safe_G)
        weights_GL = tl.exp(scores_GL - safe_G[:, None])
        total_G = total_G * kept_G + tl.sum(weights_GL, 1)
        out_GD = out_GD * kept_G[:, None] + tl.dot(weights_GL.to(v_LD.dtype), v_LD, input_precision="ieee")
        best_G = new_best_G

    is_empty_G = total_G == 0.0
    out_GD = out_GD / tl.where(is_empty_G, 1.0, total_G)[:, None]
    sums_G = tl.where(is_empty_G, float("-inf"), best_G + tl.log(tl.where(is_empty_G, 1.0, total_G)))
    places_G = rows * num_parts + part
    tl.store(parts + places_G[:, None] * DIM + dims[None, :], out_GD, mask=is_head[:, None] & is_dim[None, :])
    tl.store(sums + places_G, sums_G, mask=is_head)


@triton.jit  # type: ignore[untyped-decorator]
def _join_parts(  # type: ignore[no-untyped-def]
    parts,
    sums,
    out,
    num_parts,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One head's values: its parts' weighted by their shares of all exponentials."""
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    numbers = tl.arange(0, PARTS)
    dims = tl.arange(0, PADDED_DIM)
    is_part = numbers < num_parts
    is_dim = dims < DIM
    places = row * num_parts + numbers
    sums_P = tl.load(sums + places, mask=is_part, other=float("-inf"))
    weights_P = tl.exp(sums_P - tl.max(sums_P, 0))
    parts_PD = tl.load(
        parts + places[:, None] * DIM + dims[None, :], mask=is_part[:, None] & is_dim[None, :], other=0.0
    )
    out_D = tl.sum(parts_PD * weights_P[:, None], 0) / tl.sum(weights_P, 0)
    tl.store(out + row * DIM + dims, out_D.to(out.dtype.element_ty), mask=is_dim)
