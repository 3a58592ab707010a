"""How many tokens the cache holds: what was asked for, or what the memory allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ContextLengthError, EngineError, ResourceError
from camelid.base.files import format_bytes
from camelid.base.runtime import available_memory
from camelid.engine.kv_cache import PagedKVCache

if TYPE_CHECKING:
    from camelid.model.base import ModelConfig

MEMORY_SHARE = 0.25
"""Of the free memory, what the cache may take if its size is not given."""

ASSUMED_MEMORY = 4 * 2**30
"""Bytes taken to be free where the system does not say."""


def cache_capacity(
    bytes_per_token: int,
    *,
    cache_tokens: int | None,
    cache_bytes: int | None,
    block_size: int,
    device: torch.device,
) -> int:
    """Tokens that the cache may hold: whole blocks of what was asked for, or of a share of the free memory.

    Raises:
        EngineError: it was asked for in tokens and in bytes.
    """
    if cache_bytes is not None and cache_tokens is not None:
        raise EngineError("cache_tokens and cache_bytes say the same thing twice", hint="leave one out")
    if cache_bytes is not None:
        cache_tokens = cache_bytes // bytes_per_token
    elif cache_tokens is None:
        cache_tokens = int(free_memory(device) * MEMORY_SHARE) // bytes_per_token
    return cache_tokens // block_size * block_size


def images_in_memory(bytes_per_image: int, device: torch.device) -> int:
    """Images whose keys and values fit into half the cache's share, at least one; 0 if the model reads none."""
    return max(int(free_memory(device) * MEMORY_SHARE / 2) // bytes_per_image, 1) if bytes_per_image else 0


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() or ASSUMED_MEMORY


def checked_context(max_context: int | None, positions: int, capacity: int) -> int:
    """Tokens of prompt and reply that a sequence may have.

    Args:
        max_context: what was asked for; None: as much as there is.
        positions: where the model's own end.
        capacity: tokens that the cache may hold.

    Raises:
        ContextLengthError: `max_context` goes past the model's positions.
        ResourceError: `max_context` does not fit into the cache.
    """
    if max_context is not None and max_context > positions:
        raise ContextLengthError(
            f"max_context is {max_context} and the model's positions end at {positions}",
            hint=f"max_context may be up to {positions}",
        )
    if capacity < (max_context or 1):
        raise ResourceError(
            f"a context of {max_context or 1} tokens does not fit into a cache of {capacity}",
            hint="raise cache_tokens or cache_bytes, or lower max_context or block_size",
        )
    return min(max_context or positions, capacity)


def allocate_cache(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kind: type[PagedKVCache] = PagedKVCache,
) -> PagedKVCache:
    """The storage.

    Raises:
        ResourceError: there is no memory for it.
    """
    num_bytes = kind.bytes_per_token(config, dtype) * num_blocks * block_size
    try:
        if num_bytes >= 2**63:  # more than there are addresses; torch counts no further
            raise MemoryError
        return kind(config, num_blocks, block_size, device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise ResourceError(
            f"there is no memory for a cache of {format_bytes(num_bytes)}",
            hint="lower cache_tokens, or free some memory",
        ) from error
