"""What every weight format in blocks can do.

Shape suffixes: T tokens, R rows of a matrix, N columns, B bytes of a row; for blocks: G blocks (groups), K bytes of a
block, S elements of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from camelid import kernels
from camelid.base.errors import ConfigError
from camelid.codecs.packed import PackedTensor
from camelid.kernels.product import product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Weights unpacked at a time where only a part is needed: 4 MB as float32."""
PACKED_ELEMENTS = 1 << 16
"""Weights packed at a time: a search goes over them a hundred times, so they should stay in a core's own cache."""
LARGEST = 1e9
"""No format with half-precision scales reaches so far, and squares of much larger weights overflow in a search."""
FEW_ROWS = 32
"""Up to so many rows of activations, decoding the blocks inside the product beats unpacking them for a dense one."""


class BlockCodec(ABC):
    """A weight format in which every row of a matrix is a sequence of equal blocks.

    codec = FORMATS.load("q4_1")
    packed = codec.pack(weight)
    y = codec.matmul(x, packed)      # x @ weight.T, up to the format's error
    """

    name: ClassVar[str]
    """The key in `camelid.codecs.FORMATS`."""
    block_size: ClassVar[int]
    """Elements of a block."""
    block_bytes: ClassVar[int]
    steps_are_fixed: ClassVar[bool] = False
    """Whether the operations of a product follow from shapes alone, so that they can be recorded."""

    def has_kernel(self, device: torch.device) -> bool:
        """Whether a native kernel multiplies with blocks as they lie on this device."""
        return kernels.runs_on(self.name, device)

    def pack(self, weight: Tensor) -> PackedTensor:
        """The matrix in this format; its last dimension is packed.

        Raises:
            ConfigError: rows are not whole blocks, a value is infinite, not a number or beyond the format's range, or
                this format can only be read.
        """
        if weight.ndim == 0 or weight.shape[-1] % self.block_size:
            raise ConfigError(
                f"a tensor of shape {list(weight.shape)} cannot be packed as {self.name}",
                hint=f"its last dimension must be a multiple of {self.block_size}",
            )
        shape = tuple(weight.shape)
        blocks_GS = weight.detach().float().reshape(-1, self.block_size)
        step = max(PACKED_ELEMENTS // self.block_size, 1)
        chunks = _each_on_a_thread(self._pack_checked, torch.split(blocks_GS, step))
        blocks_GK = torch.cat(chunks) if chunks else weight.new_empty(0, self.block_bytes, dtype=torch.uint8)
        return PackedTensor(blocks_GK.reshape(prod(shape[:-1]), -1), self.name, shape)

    def unpack(self, packed: PackedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense tensor, in the packed tensor's shape; float32 is bit for bit what ggml's dequantisation gives."""
        out_RN = torch.empty(prod(packed.shape[:-1]), packed.shape[-1], dtype=dtype, device=packed.data.device)
        if dtype == torch.float32 and self.has_kernel(packed.data.device):
            kernels.unpack(self.name, packed.data, out_RN)
            return out_RN.reshape(packed.shape)
        for start, data_RB in self._row_chunks(packed):
            out_RN[start : start + len(data_RB)] = self._unpack_data(data_RB, packed.shape[-1])
        return out_RN.reshape(packed.shape)

    def unpack_rows(self, packed: PackedTensor, rows_T: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The given rows of a matrix as a dense [T, N] tensor, as an embedding looks them up.

        Args:
            packed: a matrix [R, N].
            rows_T: int64 indices from 0 to R − 1.
            dtype: of the result.
        """
        return self._unpack_data(packed.data.index_select(0, rows_T), packed.shape[-1]).to(dtype)

    def matmul(self, x_TN: Tensor, packed: PackedTensor) -> Tensor:
        """x @ W.T for a matrix W [R, N] in this format; sums in float32, differentiable in x.

        Few rows of activations are multiplied with the blocks as they lie, by a native kernel where there is one. For
        more, a few rows of W at a time are unpacked and multiplied, so memory stays bounded.

        Args:
            x_TN: activations of any floating dtype.
            packed: a matrix [R, N] on the same device.

        Returns:
            [T, R], typed like x.

        Raises:
            ConfigError: the sizes do not fit.
        """
        if x_TN.ndim != 2 or len(packed.shape) != 2 or x_TN.shape[1] != packed.shape[1]:
            raise ConfigError(f"cannot multiply {list(x_TN.shape)} by a {self.name} matrix {list(packed.shape)}")
        if x_TN.requires_grad and torch.is_grad_enabled():
            return _differentiable_matmul(x_TN, packed, self)
        return self._matmul(x_TN, packed)

    @abstractmethod
    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """The plain definition of the format: uint8 blocks [G, K] to float32 [G, S]."""

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """The format's reference quantiser: finite float32 [G, S] to uint8 blocks [G, K]."""
        raise ConfigError(f"packing into {self.name} is not supported", hint="pack as q8_0, q6_k or q4_k")

    def _pack_checked(self, blocks_GS: Tensor) -> Tensor:
        if not bool(blocks_GS.isfinite().all()):
            raise ConfigError(f"infinite or not-a-number weights cannot be packed as {self.name}")
        if bool((blocks_GS.abs() < LARGEST).all()):
            blocks_GK = self.pack_blocks(blocks_GS)
            if bool(self.unpack_blocks(blocks_GK).isfinite().all()):
                return blocks_GK
        raise ConfigError(f"the weights are too large for {self.name}: a block's scale overflows half precision")

    def _matmul(self, x_TN: Tensor, packed: PackedTensor) -> Tensor:
        if len(x_TN) <= FEW_ROWS and self.has_kernel(packed.data.device):
            return kernels.matmul(self.name, x_TN.detach().float().contiguous(), packed.data).to(x_TN.dtype)
        float_TN = x_TN.detach().float()
        out_TR = float_TN.new_empty(len(x_TN), packed.shape[0])
        for start, data_RB in self._row_chunks(packed):
            weight_RN = self._unpack_data(data_RB, packed.shape[-1])
            product(float_TN, weight_RN.t(), out_MN=out_TR[:, start : start + len(data_RB)])
        return out_TR.to(x_TN.dtype)

    def _row_chunks(self, packed: PackedTensor) -> Iterator[tuple[int, Tensor]]:
        """All rows, some at a time: the first one's number, and their data as uint8 [R, B]."""
        step = max(CHUNK_ELEMENTS // max(packed.shape[-1], 1), 1)
        for start in range(0, len(packed.data), step):
            yield start, packed.data[start : start + step]

    def _unpack_data(self, data_RB: Tensor, num_columns: int) -> Tensor:
        """Rows of blocks to float32 [R, N]."""
        if self.has_kernel(data_RB.device):
            out_RN = torch.empty(len(data_RB), num_columns, dtype=torch.float32, device=data_RB.device)
            kernels.unpack(self.name, data_RB, out_RN)
            return out_RN
        return self.unpack_blocks(data_RB.reshape(-1, self.block_bytes)).reshape(len(data_RB), num_columns)


def _each_on_a_thread(function: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> list[Tensor]:
    """The function of every chunk, many at once, each by one thread.

    Chunks are small, so torch's own threads would wait for each other hundreds of times in each; on a busy machine that
    makes packing fifty times slower.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if num_threads == 1 or len(chunks) < 2:
            return [function(chunk) for chunk in chunks]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(function, chunks))
    finally:
        torch.set_num_threads(num_threads)


class _Matmul(torch.autograd.Function):
    """The product with constant packed weights; backward unpacks them again instead of keeping them dense."""

    @staticmethod
    def forward(ctx: Any, x_TN: Tensor, packed: PackedTensor, codec: BlockCodec) -> Tensor:
        ctx.packed, ctx.codec = packed, codec
        return codec._matmul(x_TN, packed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_TR,) = grads
        packed, codec = ctx.packed, ctx.codec
        grad_TN = torch.zeros(len(grad_TR), packed.shape[-1], dtype=torch.float32, device=grad_TR.device)
        for start, data_RB in codec._row_chunks(packed):
            weight_RN = codec._unpack_data(data_RB, packed.shape[-1])
            grad_TN += grad_TR[:, start : start + len(data_RB)].float() @ weight_RN
        return grad_TN.to(grad_TR.dtype), None, None


def _differentiable_matmul(x_TN: Tensor, packed: PackedTensor, codec: BlockCodec) -> Tensor:
    return cast("Tensor", _Matmul.apply(x_TN, packed, codec))  # type: ignore[no-untyped-call]
