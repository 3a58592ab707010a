"""Causal attention over a paged cache, whose blocks are read where they lie: native on a CPU, without gradients.

The plain twin is `camelid.engine.kv_cache.PagedContext` with `CAMELID_KERNELS=torch`, which gathers what lies apart.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, D head dimension, N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from camelid import kernels
from camelid.kernels.attention import vector_width

if TYPE_CHECKING:
    from torch import Tensor

REACHES = {"all": 0, "window": 1, "chunk": 2}
"""How far back a query sees: everything; itself and the size − 1 before it; its chunk of `size` positions."""


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """Where the tokens of one step and their pasts lie; shared by all layers."""

    sequences_N4: Tensor
    """int64 on the CPU: first of the T tokens, number of them, tokens in the cache before, first entry in `tables`."""
    tables: Tensor
    """int64 on the CPU: the block tables, end to end."""
    block_size: int


Scales = tuple["Tensor", "Tensor"]
"""Of keys and of values, fp32 [slots, K, 1]: what the numbers of each slot and head are multiplied with."""


def store_rows(k_TKD: Tensor, v_TKD: Tensor, slots_T: Tensor, keys: Tensor, values: Tensor) -> None:
    """Row slots[t] of one layer's storage becomes the key and the value of token t.

    Args:
        k_TKD: new keys, for which `stores_natively` holds.
        v_TKD: new values, likewise.
        slots_T: int64 on the CPU, each one of the slots: the caller answers for that.
        keys: fp32 [slots, K, D], contiguous.
        values: likewise.
    """
    assert keys.shape == values.shape
    assert k_TKD.shape == v_TKD.shape == (len(slots_T), *keys.shape[1:])
    assert slots_T.dtype == torch.int64
    k_TKD, v_TKD = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (k_TKD, v_TKD))
    new = [(x.data_ptr(), x.stride(0)) for x in (k_TKD, v_TKD)]
    where = (slots_T.data_ptr(), len(slots_T), keys.data_ptr(), values.data_ptr(), keys.stride(0))
    kernels.native().store_rows(*new, *where, torch.get_num_threads())


def stores_natively(*tensors: Tensor) -> bool:
    """Whether `store_rows` takes these: fp32 on a CPU."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not kernels.native_available():
        return False
    return all(type(x) is torch.Tensor and x.is_cpu and x.dtype == torch.float32 for x in tensors)


def paged_attention_runs_on(q_THD: Tensor, keys: Tensor, scales: Scales | None = None) -> bool:
    """Whether `paged_attention` takes these: fp32 on a CPU that has the kernel, heads of whole vector registers."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    width = vector_width()
    return (
        width is not None
        and type(q_THD) is torch.Tensor
        and q_THD.device.type == "cpu"
        and q_THD.dtype == torch.float32
        and q_THD.shape[-1] % width == 0
        and keys.dtype == (torch.float32 if scales is None else torch.int8)
        and all(x.dtype == torch.float32 for x in scales or ())
    )


def paged_attention(
    q_THD: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: PagedLayout,
    *,
    scale: float,
    scales: Scales | None = None,
    reach: tuple[str, int] = ("all", 0),
    instruction_set: str | None = None,
) -> Tensor:
    """Attention of the step's tokens to their pasts and themselves: [T, H, D].

    A token's result is the same bit for bit whatever runs beside it, however its sequence was cut into steps, wherever
    the blocks lie, and whatever the number of threads.

    Args:
        q_THD: queries, for which `paged_attention_runs_on` holds.
        keys: one layer's storage [slots, K, D], the step's own keys written, fp32, or int8 beside `scales`; query head
            h reads key/value head h // (H // K).
        values: likewise.
        layout: of the step.
        scale: factor of the scores before the softmax.
        scales: of keys and values in int8.
        reach: one of `REACHES` and its size.
        instruction_set: one of `camelid.kernels.instruction_sets()` instead of the chosen one.
    """
    if q_THD.stride()[1:] != (q_THD.shape[2], 1):
        q_THD = q_THD.contiguous()
    num_heads, head_dim = q_THD.shape[1:]
    num_key_heads = keys.shape[1]
    assert num_heads % num_key_heads == 0
    assert keys.shape[1:] == values.shape[1:] == (num_key_heads, head_dim)
    assert all(x.is_contiguous() for x in (keys, values, *(scales or ())))
    key_scales, value_scales = (0, 0) if scales is None else (x.data_ptr() for x in scales)
    out_THD = torch.empty(q_THD.shape, dtype=torch.float32, device=q_THD.device)
    sizes = (len(layout.sequences_N4), layout.block_size, num_heads, num_key_heads, head_dim)
    kernels.native().paged_attention(
        instruction_set or kernels.instruction_set(),
        layout.sequences_N4.data_ptr(),
        layout.tables.data_ptr(),
        sizes,
        scale,
        (REACHES[reach[0]], reach[1]),
        (q_THD.data_ptr(), q_THD.stride(0)),
        (keys.data_ptr(), key_scales),
        (values.data_ptr(), value_scales),
        (out_THD.data_ptr(), out_THD.stride(0)),
        torch.get_num_threads(),
    )
    return out_THD
