"""Norm, feed-forward layer and the width rule, each against its formula."""

from __future__ import annotations

import pytest
import torch

from camelid.model.layers import FeedForward, RMSNorm, feed_forward_width


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_casts_back_before_it_multiplies_by_the_weight(dtype: torch.dtype) -> None:
    norm = RMSNorm(64, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(200, 64) * 3).to(dtype)

    wide = x.float()
    expected = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * norm.weight

    if dtype == torch.bfloat16:
        assert torch.equal(norm(x), expected)
    else:  # the native kernel sums in another order
        torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)


def test_eps_keeps_zeros_finite() -> None:
    norm = RMSNorm(8, eps=1e-6)
    torch.nn.init.ones_(norm.weight)

    assert torch.equal(norm(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_swiglu_gates_with_gate_proj() -> None:
    layer = FeedForward(16, 24)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 16)
    gate_weight, up_weight, down_weight = (
        projection.weight.detach().double() for projection in (layer.gate_proj, layer.up_proj, layer.down_proj)
    )
    gate, up = x.double() @ gate_weight.T, x.double() @ up_weight.T
    gated = gate * gate.sigmoid() * up

    # Measured by what is summed, since a sum may come near 0.
    error = (layer(x) - gated @ down_weight.T).abs()
    assert (error <= 1e-6 * (gated.abs() @ down_weight.abs().T)).all()


def test_widths_are_rounded_up_after_scaling() -> None:
    assert feed_forward_width(4096) == 11008
    assert feed_forward_width(4096, multiple_of=1024, ffn_dim_multiplier=1.3) == 14336
    assert feed_forward_width(288, multiple_of=32) == 768
