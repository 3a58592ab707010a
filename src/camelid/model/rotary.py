"""Rotary position embeddings in Hugging Face's layout: dimension i of a head forms a pair with dimension i + D/2.

Meta's own files pair 2i with 2i + 1 instead; reading them permutes the rows of the query and key projections. Llama 4
alone keeps Meta's pairs in Hugging Face's folders too.

Shape suffixes: T tokens, N heads (of queries, of keys, or both), D head dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from camelid.kernels.elementwise import rotate, rotates_natively

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.model.rope import RopeParameters


class Rotation(NamedTuple):
    """How far each token's pairs are turned; computed once per forward pass and shared by all layers."""

    cos_T1D: Tensor
    """fp32; the cosine of each pair's angle at both of the pair's places."""
    sin_T1D: Tensor
    """fp32; the sine, negative at the first place of the pair."""

    def apply(self, x_TND: Tensor) -> Tensor:
        """Turn every head's pairs: (a, b) → (a·cos − b·sin, b·cos + a·sin), in fp32, returned in x's dtype."""
        if rotates_natively(x_TND, self.cos_T1D, self.sin_T1D):
            return rotate(x_TND, self.cos_T1D, self.sin_T1D)
        other_of_pair = x_TND.roll(x_TND.shape[-1] // 2, -1)
        return (x_TND * self.cos_T1D).addcmul_(other_of_pair, self.sin_T1D).to(x_TND.dtype)


class AdjacentRotation(Rotation):
    """The same for pairs (2i, 2i + 1)."""

    __slots__ = ()

    def apply(self, x_TND: Tensor) -> Tensor:
        """Turn every head's pairs, in fp32, returned in x's dtype."""
        other_of_pair = x_TND.reshape(*x_TND.shape[:-1], -1, 2).flip(-1).flatten(-2)
        return (x_TND * self.cos_T1D).addcmul_(other_of_pair, self.sin_T1D).to(x_TND.dtype)


class RotaryEmbedding:
    """The angles of positions.

    It is no module: its few numbers follow from the config, need not move with the model and cannot be lost on the meta
    device.

    Args:
        parameters: the kind of frequencies and their settings.
        head_dim: dimensions of a head (even).
    """

    rotation: ClassVar[type[Rotation]] = Rotation

    def __init__(self, parameters: RopeParameters, head_dim: int) -> None:
        frequencies, amplitude = parameters.frequencies(head_dim), parameters.amplitude
        amplitudes = torch.full_like(frequencies, amplitude)
        self._amplitude = amplitude
        # Each at both of a pair's places: in a decoding step, operations cost more than what they compute.
        self._frequencies_D = self.in_pairs(frequencies, frequencies)
        self._signs_D = self.in_pairs(-amplitudes, amplitudes)

    @staticmethod
    def in_pairs(first: Tensor, second: Tensor) -> Tensor:
        """Numbers for the first and for the second place of each pair: [D]."""
        return torch.cat((first, second))

    def __call__(self, positions_T: Tensor) -> Rotation:
        """The rotation of tokens at these positions."""
        if self._frequencies_D.device != positions_T.device:
            self._frequencies_D = self._frequencies_D.to(positions_T.device)
            self._signs_D = self._signs_D.to(positions_T.device)
        angles_T1D = positions_T[:, None, None].float() * self._frequencies_D
        cos_T1D, sin_T1D = angles_T1D.cos(), angles_T1D.sin() * self._signs_D
        return self.rotation(cos_T1D if self._amplitude == 1 else cos_T1D * self._amplitude, sin_T1D)


class AdjacentRotaryEmbedding(RotaryEmbedding):
    """The angles of positions for heads whose pairs are (2i, 2i + 1)."""

    rotation = AdjacentRotation

    @staticmethod
    def in_pairs(first: Tensor, second: Tensor) -> Tensor:
        """Numbers for the first and for the second place of each pair: [D]."""
        return torch.stack((first, second), -1).flatten()
