"""Recording the operations of a decoding step on a CUDA device, and replaying them without Python.

A recording (`torch.cuda.CUDAGraph`) is of addresses: it reads its input, the weights and the cache where they lay, and
leaves its output where it left it then. The input is written over before each replay. All recordings of one model share
their memory, since only one is replayed at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from camelid.base.errors import EngineError
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from camelid.codecs.packed import PackedTensor

WARM_UPS = 2
"""Runs before the recorded one: libraries choose and load their kernels, and compilers compile."""


class Recording(NamedTuple):
    """What was recorded of a function of one input."""

    replay: Callable[[], None]
    """Runs the operations again."""
    out: Tensor
    """Where they leave the result."""


class Device(Protocol):
    """What can record."""

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Record a function's operations; it has run at least once then, but what it returned is not computed yet."""


class CudaDevice:
    """CUDA graphs on one device, in a pool of memory of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Record a function's operations."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = run()
        return Recording(graph.replay, out)


class Recorder:
    """Recordings of a model's steps, one for each shape of their input, made when it first comes.

    Weights may change in place. Where one lies elsewhere than when it was recorded, everything is recorded again.

    Args:
        model: whose step it is.
        device: what records.
    """

    def __init__(self, model: nn.Module, device: Device) -> None:
        self._device = device
        self._holders = [(module._parameters, name) for module in model.modules() for name in module._parameters]
        self._matrices = [module for module in model.modules() if isinstance(module, Matrix)]
        self._addresses: list[int] = []
        self._packed: list[PackedTensor | None] = []
        """Held, so that none is taken for another that came to lie in its place."""
        self._recordings: dict[tuple[int, ...], Recording] = {}

    def run(self, inputs: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """The step's result, which the next run writes over.

        Args:
            inputs: for each shape the same tensor in every call; only its contents may differ.
            step: the same function in every call. It may write to other memory than its result's only what it would
                write again if it ran again.

        Raises:
            EngineError: the step does what can't be recorded.
        """
        found = (parameters.get(name) for parameters, name in self._holders)
        addresses = [0 if parameter is None else parameter.data_ptr() for parameter in found]
        packed = [matrix.packed for matrix in self._matrices]
        if addresses != self._addresses or any(a is not b for a, b in zip(packed, self._packed, strict=True)):
            self._recordings.clear()
            self._addresses, self._packed = addresses, packed
        recording = self._recordings.get(inputs.shape)
        if recording is None:
            try:
                recording = self._recordings[inputs.shape] = self._device.record(lambda: step(inputs))
            except RuntimeError as error:
                raise EngineError(
                    f"the model's step can't be recorded: {error}", hint="make the engine without decode_graphs"
                ) from error
        recording.replay()
        return recording.out
