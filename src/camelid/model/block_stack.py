"""The blocks of a decoder in one native call, for as long as they are nothing but what their classes say.

Whether they are is asked anew in each step, because between any two steps weights may be replaced and hooks registered.
There are hundreds of modules and Python's own memory comes slowly after a step of native kernels, so all is asked in
loops of C over lists that were made once.

Shape suffixes: T tokens, W those that are wanted, E hidden size.
"""

from __future__ import annotations

from itertools import chain, repeat
from operator import attrgetter, contains, is_not
from typing import TYPE_CHECKING, Any

import torch

from camelid.kernels.stack import Stack, stack_runs_on, transformer_stack
from camelid.model.layers import RMSNorm
from camelid.model.linear import Linear, has_hooks_for_all
from camelid.model.rotary import Rotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from camelid.model.attention import AttentionContext

OWN_WAYS = ("forward", "_compiled_call_impl")
"""Attributes by which a module is called otherwise than its class says."""


class BlockStack:
    """Blocks that follow each other, and the norm behind them if there is one.

    Args:
        parts: the modules of a block by their path in it, in order, and what each must be; those with weights are
            `RMSNorm`s and `Linear`s in the order of `camelid.kernels.stack.Stack`, and "self_attn" tells its `layer`,
            `scale` and `head_dim`.
    """

    def __init__(self, parts: Mapping[str, type[nn.Module]]) -> None:
        self._parts = parts
        self._listed = _Listed(parts, [], [])
        """Made and replaced as a whole: several threads may step one model."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model watches its own modules."""
        return BlockStack, (self._parts,)

    def run(
        self,
        blocks: Iterable[nn.Module],
        x_TE: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        norm: nn.Module | None = None,
    ) -> Tensor | None:
        """What the blocks one by one would give, to the same bits; None where that cannot be.

        Args:
            blocks: which may be others than before.
            x_TE: what they are given.
            rotation: likewise.
            context: likewise.
            norm: behind the last block.

        Returns:
            [T, E] without a norm; with one [W, E], of the tokens that the context wants.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or has_hooks_for_all():
            return None
        if type(rotation) is not Rotation:  # others turn other pairs
            return None
        place = context.paged_place()
        if place is None:
            return None
        stack = self._stack(list(blocks), [] if norm is None else [norm])
        if stack is None or not stack_runs_on(x_TE, stack):
            return None
        return transformer_stack(x_TE, stack, rotation.cos_T1D, rotation.sin_T1D, place)

    def _stack(self, blocks: list[nn.Module], norms: list[nn.Module]) -> Stack | None:
        """The blocks' weights and numbers, unless there is more to the modules."""
        listed = self._listed
        if blocks + norms != listed.roots or _values(listed.children_of) != listed.children:
            self._listed = listed = _Listed(self._parts, blocks, norms)
        return listed.stack()


class _Listed:
    """The lists of what each step looks at."""

    def __init__(self, parts: Mapping[str, type[nn.Module]], blocks: list[nn.Module], norms: list[nn.Module]) -> None:
        paths_and_modules = [list(block.named_modules()) for block in blocks]
        self.roots = blocks + norms
        self._are_in_order = all([path for path, _ in part] == list(parts) for part in paths_and_modules)
        self._modules = [module for part in paths_and_modules for _, module in part] + norms
        self._kinds = [*parts.values()] * len(blocks) + [RMSNorm] * len(norms)
        self._attributes = [module.__dict__ for module in self._modules]
        self._hooks = [hooks for m in self._modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.children_of = [module._modules for module in self._modules if module._modules]
        self.children = _values(self.children_of)
        self._norms, self._projections = (
            [m for m, its_kind in zip(self._modules, self._kinds, strict=False) if its_kind is kind]
            for kind in (RMSNorm, Linear)
        )
        self._parameters = [module._parameters for module in self._modules]
        self._with_weight = [
            parameters
            for parameters, kind in zip(self._parameters, self._kinds, strict=False)
            if kind in (RMSNorm, Linear)
        ]
        self._attentions = [module for part in paths_and_modules for path, module in part if path == "self_attn"]

    def stack(self) -> Stack | None:
        """The weights and numbers as they are now, unless there is more to the modules."""
        if (
            not self._are_in_order
            or list(map(type, self._modules)) != self._kinds
            or any(self._hooks)
            or any(any(map(contains, self._attributes, repeat(way))) for way in OWN_WAYS)
            or sum(map(len, self._parameters)) != len(self._with_weight)
            or any(map(is_not, map(attrgetter("bias"), self._projections), repeat(None)))
        ):
            return None
        layers, scales, head_dims = (
            list(map(attrgetter(name), self._attentions)) for name in ("layer", "scale", "head_dim")
        )
        if len(set(head_dims)) != 1:
            return None
        epsilons = list(map(attrgetter("eps"), self._norms))
        weights: list[Any] = list(map(dict.get, self._with_weight, repeat("weight")))
        return Stack(weights, epsilons, layers, scales, head_dims[0])


def _values(dicts: Iterable[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, dicts)))
