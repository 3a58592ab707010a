"""What the cache remembers, kept in a file: a long system prompt need not be read again after a restart.

A safetensors file holds the remembered blocks' keys and values, the blocks' own keys, and a digest of the weights that
computed them. With other weights it is refused.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from camelid.base.errors import FormatError
from camelid.base.files import atomic_file, check_free_space, existing_file
from camelid.codecs import DEVICE_FORMATS
from camelid.engine.block_manager import KEY_BYTES
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from camelid.engine.block_manager import BlockManager
    from camelid.engine.kv_cache import PagedKVCache


@torch.inference_mode()
def save_cache(path: Path, blocks: BlockManager, cache: PagedKVCache, model: nn.Module) -> int:
    """Write all remembered blocks, whole or not at all; how many there were.

    Raises:
        ResourceError: the disk is too small.
    """
    remembered = blocks.remembered()
    keys = b"".join(key for key, _ in remembered)
    tensors = {"block_keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8) if keys else torch.empty(0).byte()}
    slots = _slots([block for _, block in remembered], cache)
    for name, tensor in cache.tensors():
        tensors[name] = tensor[slots].cpu().contiguous()
    check_free_space(path, sum(tensor.nbytes for tensor in tensors.values()))
    with atomic_file(path) as file:
        file.write(save(tensors, metadata=_metadata(cache, model)))
    return len(remembered)


@torch.inference_mode()
def restore_cache(path: Path, blocks: BlockManager, cache: PagedKVCache, model: nn.Module) -> int:
    """Remember what a file holds, as far as blocks are free; how many blocks were read.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is broken, or was written by other weights or another kind of cache.
    """
    try:
        with safe_open(existing_file(path), framework="pt") as file:
            found, expected = file.metadata() or {}, _metadata(cache, model)
            for name, value in expected.items():
                if found.get(name) != value:
                    raise FormatError(f"the cache was saved with another {name}", where=path)
            data = bytes(file.get_tensor("block_keys").numpy())
            keys = [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]
            stored = {name: file.get_tensor(name) for name, _ in cache.tensors()}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"this is no saved cache: {error}", where=path) from error
    num_rows = len(keys) * cache.block_size
    if any(len(tensor) != num_rows for tensor in stored.values()):
        raise FormatError("the saved cache's tensors do not belong together", where=path)
    # The latest come last in the file; where not all fit, those are worth most.
    places: list[int] = []
    table: list[int] = []
    num_room = min(len(keys), blocks.num_free - blocks.num_remembered_unheld)
    for place in range(len(keys) - num_room, len(keys)):
        if not blocks.remembers(keys[place]) and blocks.reserve(table, (len(table) + 1) * blocks.block_size):
            blocks.remember(table[-1], keys[place])
            places.append(place)
    source, target = _slots(places, cache).cpu(), _slots(table, cache)
    for name, tensor in cache.tensors():
        tensor[target] = stored[name][source].to(tensor.device)
    blocks.release(table)
    return len(places)


def weights_digest(model: nn.Module) -> str:
    """A digest of every weight, dense or packed."""
    digest = sha256()
    for name, tensor in sorted(_weights(model)):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    packed = [
        (f"{path}.packed", module.dense() if module.packed.format in DEVICE_FORMATS else module.packed.data)
        for path, module in model.named_modules()
        if isinstance(module, Matrix) and module.packed is not None
    ]
    return [*model.state_dict().items(), *packed]


def _metadata(cache: PagedKVCache, model: nn.Module) -> dict[str, str]:
    shapes = {name: f"{tensor.dtype} {list(tensor.shape[1:])}" for name, tensor in cache.tensors()}
    return {"block size": str(cache.block_size), "layout": str(sorted(shapes.items())), "model": weights_digest(model)}


def _slots(block_table: list[int], cache: PagedKVCache) -> Tensor:
    size = cache.block_size
    starts_N1 = torch.tensor(block_table, dtype=torch.int64, device=cache.device)[:, None] * size
    return (starts_N1 + torch.arange(size, device=cache.device)).flatten()
