"""The search behind packing: scales that round a group of weights with the least weighted squared error.

The candidates are like those of ggml's quantisers (ggml-quants.c, make_qkx2_quants and make_qx_quants): the range of
the weights spread over a few more or fewer levels than there are, each time with the scale that fits best afterwards.
There are half as many, and what comes on top does more for less: the best candidate is fitted again, scales are rounded
together with what they scale, and the numbers that all sub-blocks of a block share are fitted once more.

Shape suffixes: S elements of a sub-block, N sub-blocks, B blocks, M sub-blocks of a block; N = B·M. Elements come
first, so that every sum over a sub-block runs over whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from camelid.codecs.bits import reciprocal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Rounding = Callable[[Tensor], Tensor]

_SINGULAR: Final = 1e-5
"""A determinant below this share of its first product is nothing but rounding errors of 32-bit sums."""

_NOTICEABLE: Final = 1 + 5e-7
"""How much better a candidate must be. Where several fit exactly, rounding errors would decide otherwise, and the
sub-blocks of a block would not have one scale in common."""

REFITS: Final = 1
"""Times that the best candidate is fitted again; more lower the error by less than one in ten thousand."""

VANISHING: Final = 1e-30
"""Weights below this count as zeros."""


def sub_blocks(blocks_GS: Tensor, size: int) -> Tensor:
    """Blocks [G, 256] as sub-blocks [S, N] of `size` elements."""
    return blocks_GS.reshape(-1, size).T.contiguous()


def whole_blocks(numbers_SN: Tensor, num_elements: int) -> Tensor:
    """The inverse of `sub_blocks`."""
    return numbers_SN.T.reshape(-1, num_elements)


def total(values_SN: Tensor) -> Tensor:
    """The sum over S, a power of two, in an order that is the same whatever N is, so that a block packs alike anywhere.

    (torch's own sum adds in another order where N is no multiple of its vectors.) Dimensions before S stay.
    """
    while (size := values_SN.shape[-2]) > 1:
        values_SN = values_SN[..., : size // 2, :] + values_SN[..., size // 2 :, :]
    return values_SN[..., 0, :]


def mean_size(x_SN: Tensor) -> Tensor:
    """The root mean square of each sub-block."""
    return (total(x_SN.square()) / len(x_SN)).sqrt()


def square_weights(x_SN: Tensor, share: float) -> Tensor:
    """What errors count in formats around zero: the weight's square and a share of the sub-block's mean square.

    ggml counts the square alone. With a share, the search still finds less of ggml's measure than ggml's own, which
    tries fewer scales, and a smaller plain error as well.
    """
    square_SN = x_SN.square()
    return square_SN + total(square_SN) * (share / len(square_SN))


def fit_from_minimum(
    x_SN: Tensor, weights_SN: Tensor, num_levels: int, spreads: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scale and minimum of w ≈ d·q + m with q in 0 … L − 1, d ≥ 0 and m ≤ 0.

    Args:
        x_SN: the weights.
        weights_SN: what each one's squared error counts.
        num_levels: L.
        spreads: how many levels more than L − 1 the range is spread over, for each candidate.

    Returns:
        d and m as fp32 [N].
    """
    top = num_levels - 1
    low_N, high_N = x_SN.amin(dim=0).clamp(max=0), x_SN.amax(dim=0)
    weighted_SN = weights_SN * x_SN
    sums = total(weights_SN), total(weighted_SN)
    inverse_N = reciprocal(high_N - low_N)
    scale_N, minimum_N = (high_N - low_N) / top, low_N
    best_N = torch.full_like(low_N, -torch.inf)
    shifted_SN = x_SN - low_N

    def try_numbers(numbers_SN: Tensor) -> None:
        nonlocal scale_N, minimum_N, best_N
        scale, minimum, gain = _least_squares(numbers_SN, weights_SN, weighted_SN, *sums)
        better_N = gain > best_N * _NOTICEABLE
        scale_N = torch.where(better_N, scale, scale_N)
        minimum_N = torch.where(better_N, minimum, minimum_N)
        best_N = torch.where(better_N, gain, best_N)

    for spread in spreads:
        try_numbers((shifted_SN * ((top + spread) * inverse_N)).round_().clamp_(0, top))
    for _ in range(REFITS):
        try_numbers(((x_SN - minimum_N) * reciprocal(scale_N)).round_().clamp_(0, top))
    return scale_N, minimum_N


def _least_squares(
    numbers_SN: Tensor, weights_SN: Tensor, weighted_SN: Tensor, sum_w_N: Tensor, sum_x_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Best scale and minimum for given q, and by how much they lower the error below that of all zeros."""
    terms_3SN = torch.empty(3, *numbers_SN.shape)
    torch.mul(weights_SN, numbers_SN, out=terms_3SN[0])
    torch.mul(terms_3SN[0], numbers_SN, out=terms_3SN[1])
    torch.mul(weighted_SN, numbers_SN, out=terms_3SN[2])
    sum_q_N, sum_qq_N, sum_qx_N = total(terms_3SN)
    determinant_N = sum_w_N * sum_qq_N - sum_q_N * sum_q_N
    inverse_N = reciprocal(determinant_N)
    scale_N = (sum_w_N * sum_qx_N - sum_x_N * sum_q_N) * inverse_N
    minimum_N = (sum_qq_N * sum_x_N - sum_q_N * sum_qx_N) * inverse_N
    # Numbers that are all the same leave a determinant of rounding errors; then zero is as good a minimum as any.
    above_N = (minimum_N > 0) | (determinant_N < _SINGULAR * sum_w_N * sum_qq_N)
    scale_N = torch.where(above_N, sum_qx_N * reciprocal(sum_qq_N), scale_N)
    minimum_N = torch.where(above_N, 0.0, minimum_N)
    gain_N = scale_N * (2 * sum_qx_N - scale_N * sum_qq_N) + minimum_N * (2 * sum_x_N - minimum_N * sum_w_N)
    gain_N -= 2 * scale_N * minimum_N * sum_q_N
    return scale_N, minimum_N, torch.where(scale_N > 0, gain_N, -torch.inf)


def fit_symmetric(x_SN: Tensor, weights_SN: Tensor, candidates: Sequence[float], to_levels: Rounding) -> Tensor:
    """The scale of w ≈ d·q, of either sign, for levels that reach further below zero than above.

    Args:
        x_SN: the weights.
        weights_SN: what each one's squared error counts.
        candidates: on which numbers the largest weight is put before rounding.
        to_levels: numbers to the nearest levels; may change its argument.

    Returns:
        d as fp32 [N].
    """
    largest_N = x_SN.gather(0, x_SN.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    # A half holds no scale of such weights; their reciprocals times a level would overflow.
    inverse_N = reciprocal(largest_N.where(largest_N.abs() > VANISHING, torch.zeros_like(largest_N)))
    weighted_SN = weights_SN * x_SN
    scale_N = torch.zeros_like(largest_N)
    best_N = torch.zeros_like(largest_N)

    def try_levels(levels_SN: Tensor) -> None:
        nonlocal scale_N, best_N
        sum_qx_N = total(weighted_SN * levels_SN)
        sum_qq_N = total((weights_SN * levels_SN).mul_(levels_SN))
        scale = sum_qx_N * reciprocal(sum_qq_N)
        gain_N = scale * sum_qx_N
        better_N = gain_N > best_N
        scale_N = torch.where(better_N, scale, scale_N)
        best_N = torch.where(better_N, gain_N, best_N)

    for candidate in candidates:
        try_levels(to_levels(x_SN * (candidate * inverse_N)))
    for _ in range(REFITS):
        try_levels(to_levels(x_SN * reciprocal(scale_N)))
    return scale_N


def fit_symmetric_blocks(blocks_GS: Tensor, *, half: int, half_scales: int) -> Rounded:
    """The search for blocks of 16 sub-blocks of 16; errors count by `square_weights`.

    Args:
        blocks_GS: finite float32 weights, 256 to a block.
        half: q is in −half … half − 1.
        half_scales: s likewise.
    """
    x_SN = sub_blocks(blocks_GS, 16)
    weights_SN = square_weights(x_SN, share=1)
    candidates = [-half - i / 5 for i in range(-4, 5)]
    scale_N = fit_symmetric(x_SN, weights_SN, candidates, lambda x: x.round_().clamp_(-half, half - 1))
    return round_symmetric_scales(x_SN, weights_SN, scale_N, per_block=16, half_scales=half_scales, half=half)


@dataclass(frozen=True)
class Rounded:
    """Blocks whose sub-blocks' scales are whole numbers times one number of the block."""

    steps_B: Tensor
    """d, fp32 that a half holds exactly."""
    depths_B: Tensor
    """dmin likewise; zeros in a symmetric format."""
    scales_N: Tensor
    """Whole numbers s, as fp32."""
    minimums_N: Tensor
    """Whole numbers m, as fp32."""
    numbers_SN: Tensor
    """q as fp32; w ≈ d·s·q − dmin·m."""


def round_with_minimums(
    x_SN: Tensor, weights_SN: Tensor, scale_N: Tensor, minimum_N: Tensor, *, per_block: int, top_scale: int, top: int
) -> Rounded:
    """Whole numbers for the scales and minimums that `fit_from_minimum` found, and q that fit them.

    Args:
        x_SN: the weights.
        weights_SN: what each one's squared error counts.
        scale_N: wanted d·s.
        minimum_N: wanted −dmin·m.
        per_block: M, sub-blocks of a block.
        top_scale: s and m are in 0 … top_scale.
        top: q is in 0 … top.
    """
    steps_B = _half(scale_N.view(-1, per_block).amax(dim=1) / top_scale)
    depths_B = _half((-minimum_N).view(-1, per_block).amax(dim=1) / top_scale)
    step_N, depth_N = (one.repeat_interleave(per_block) for one in (steps_B, depths_B))
    scales_N = (scale_N * reciprocal(step_N)).round_().clamp_(0, top_scale)
    minimums_N = (-minimum_N * reciprocal(depth_N)).round_().clamp_(0, top_scale)
    best = scales_N, minimums_N
    best_N = torch.full_like(scale_N, torch.inf)
    for scale_change in _CHANGES:
        for minimum_change in _CHANGES:
            scales = (scales_N + scale_change).clamp_(0, top_scale)
            minimums = (minimums_N + minimum_change).clamp_(0, top_scale)
            error_N = _error(x_SN, weights_SN, step_N * scales, depth_N * minimums, 0, top)[0]
            better_N = error_N < best_N
            best = torch.where(better_N, scales, best[0]), torch.where(better_N, minimums, best[1])
            best_N = torch.where(better_N, error_N, best_N)
    return _with_better_steps(x_SN, weights_SN, steps_B, depths_B, *best, 0, top)


def round_symmetric_scales(
    x_SN: Tensor, weights_SN: Tensor, scale_N: Tensor, *, per_block: int, half_scales: int, half: int
) -> Rounded:
    """Whole numbers s in −half_scales … half_scales − 1 for scales of `fit_symmetric`, and q in −half … half − 1."""
    scale_BM = scale_N.view(-1, per_block)
    largest_B = scale_BM.gather(1, scale_BM.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    steps_B = _half(largest_B / -half_scales)
    step_N = steps_B.repeat_interleave(per_block)
    depth_N = torch.zeros_like(step_N)
    scales_N = (scale_N * reciprocal(step_N)).round_().clamp_(-half_scales, half_scales - 1)
    best, best_N = scales_N, torch.full_like(scale_N, torch.inf)
    for change in _CHANGES:
        scales = (scales_N + change).clamp_(-half_scales, half_scales - 1)
        error_N = _error(x_SN, weights_SN, step_N * scales, depth_N, -half, half - 1)[0]
        better_N = error_N < best_N
        best, best_N = torch.where(better_N, scales, best), torch.where(better_N, error_N, best_N)
    return _with_better_steps(x_SN, weights_SN, steps_B, torch.zeros_like(steps_B), best, depth_N, -half, half - 1)


_CHANGES: Final = (0, -1, 1)


def _error(
    x_SN: Tensor, weights_SN: Tensor, step_N: Tensor, depth_N: Tensor, bottom: int, top: int
) -> tuple[Tensor, Tensor]:
    """The weighted squared error of each sub-block, and the numbers q that it has."""
    shifted_SN = x_SN + depth_N
    numbers_SN = (shifted_SN * reciprocal(step_N)).round_().clamp_(bottom, top)
    difference_SN = shifted_SN.sub_(numbers_SN * step_N)
    return total(difference_SN.square_().mul_(weights_SN)), numbers_SN


def _with_better_steps(
    x_SN: Tensor,
    weights_SN: Tensor,
    steps_B: Tensor,
    depths_B: Tensor,
    scales_N: Tensor,
    minimums_N: Tensor,
    bottom: int,
    top: int,
) -> Rounded:
    """d and dmin fitted to everything else, where that lowers the block's error."""
    num_blocks, per_block = len(steps_B), len(scales_N) // len(steps_B)

    def evaluate(steps: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
        step_N, depth_N = steps.repeat_interleave(per_block), depths.repeat_interleave(per_block)
        return _error(x_SN, weights_SN, step_N * scales_N, depth_N * minimums_N, bottom, top)

    def of_block(values_N: Tensor) -> Tensor:
        return total(values_N.view(num_blocks, per_block).T)

    error_N, numbers_SN = evaluate(steps_B, depths_B)
    products_SN = weights_SN * numbers_SN
    sum_qq = of_block(scales_N * scales_N * total(products_SN * numbers_SN))
    sum_qx = of_block(scales_N * total(products_SN * x_SN))
    sum_qm = of_block(-scales_N * minimums_N * total(products_SN))
    sum_mm = of_block(minimums_N * minimums_N * total(weights_SN))
    sum_mx = of_block(-minimums_N * total(weights_SN * x_SN))
    inverse_B = reciprocal(sum_qq * sum_mm - sum_qm * sum_qm)
    alone_B = inverse_B == 0
    fitted_B = torch.where(alone_B, sum_qx * reciprocal(sum_qq), (sum_mm * sum_qx - sum_qm * sum_mx) * inverse_B)
    new_steps_B = _half(fitted_B)
    # dmin fits the d that was rounded, not the one that was fitted.
    new_depths_B = _half(torch.where(alone_B, depths_B, (sum_mx - sum_qm * new_steps_B) * reciprocal(sum_mm)))
    new_error_N, new_numbers_SN = evaluate(new_steps_B, new_depths_B)
    better_B = of_block(new_error_N) < of_block(error_N)
    better_N = better_B.repeat_interleave(per_block)
    return Rounded(
        torch.where(better_B, new_steps_B, steps_B),
        torch.where(better_B, new_depths_B, depths_B),
        scales_N,
        minimums_N,
        torch.where(better_N, new_numbers_SN, numbers_SN),
    )


def _half(values: Tensor) -> Tensor:
    """Rounded to what a half holds; beyond its range infinite, which packing refuses."""
    return values.half().float()
