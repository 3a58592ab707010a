"""Muon with the matrices of one shape orthogonalised together.

torch's own takes them one by one: on an H100, the 70 matrices of a 32M model then take 67 ms of launching kernels that
are done in 20, longer than the rest of the step.

Shape suffixes: B matrices of one shape, M their shorter side, N their longer side.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

SCALE = 0.2
"""Of the learning rate: an update's root mean square, about AdamW's (Liu et al. 2025, arXiv 2502.16982, §2.2)."""


class Muon(torch.optim.Muon):
    """Momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers"), scaled to AdamW's size.

    State, constants and mathematics are torch's with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`. The
    products are in bfloat16 on an accelerator and in float32 on a CPU, most of which are slower in bfloat16.

    Args:
        params: matrices.
        lr: the learning rate.
        weight_decay: decoupled.
        momentum: of the gradients' mean.
    """

    def __init__(self, params: Sequence[Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            means = [self._momentum(p) for p in params]
            torch._foreach_lerp_(means, grads, 1 - group["momentum"])
            looks_ahead = torch._foreach_lerp(grads, means, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p, update in zip(params, looks_ahead, strict=True):
                by_shape[tuple(sorted(p.shape))].append((p, update))
            for (_, longer), members in by_shape.items():
                self._update(members, group, group["lr"] * SCALE * longer**0.5)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad, memory_format=torch.preserve_format)  # type: ignore[arg-type]
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _update(self, members: list[tuple[Tensor, Tensor]], group: dict[str, Any], learning_rate: float) -> None:
        dtype = torch.float32 if members[0][0].device.type == "cpu" else torch.bfloat16
        wide_BMN = torch.stack([_wide(update, like=p).to(dtype) for p, update in members])
        wide_BMN = orthogonalised(wide_BMN, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for (p, _), update_MN in zip(members, wide_BMN, strict=True):
            p.add_(_wide(update_MN, like=p), alpha=-learning_rate)


def orthogonalised(x_BMN: Tensor, coefficients: tuple[float, float, float], num_steps: int, epsilon: float) -> Tensor:
    """Each matrix with its singular values pulled towards 1, by Newton and Schulz's iteration in quintic form."""
    a, b, c = coefficients
    x_BMN = x_BMN / x_BMN.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(num_steps):
        gram_BMM = x_BMN @ x_BMN.mT
        pull_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, pull_BMM, x_BMN, beta=a)
    return x_BMN


def _wide(matrix: Tensor, *, like: Tensor) -> Tensor:
    """The matrix transposed if `like` is higher than wide: there and back."""
    return matrix.mT if like.shape[0] > like.shape[1] else matrix
