"""AdamW, and Muon for the matrices of the blocks, behind one interface whose state is named tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from camelid.base.errors import ConfigError, FormatError
from camelid.model.linear import Linear
from camelid.train.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from camelid.model.base import LanguageModel
    from camelid.train.settings import OptimizerSettings


class Optimizer:
    """Updates the trainable parameters of a model from their gradients.

    Args:
        model: its parameters, on their device and in their dtype.
        settings: which algorithm and its constants.

    Raises:
        ConfigError: nothing in the model is trainable, as when all its weights are packed.
    """

    def __init__(self, model: LanguageModel, settings: OptimizerSettings) -> None:
        self.max_gradient_norm = settings.max_gradient_norm
        self.learning_rate = settings.learning_rate
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._named:
            raise ConfigError("the model has no parameter to train", hint="load it with dense weights")
        muon = _block_matrices(model) & self._named.keys() if settings.name == "muon" else set()
        adamw = [(name, p) for name, p in self._named.items() if name not in muon]
        self._parts: list[torch.optim.Optimizer] = []
        if adamw:
            self._parts.append(
                torch.optim.AdamW(
                    [
                        {"params": [p for _, p in adamw if p.ndim >= 2], "weight_decay": settings.weight_decay},
                        {"params": [p for _, p in adamw if p.ndim < 2], "weight_decay": 0.0},
                    ],
                    lr=settings.learning_rate,
                    betas=(settings.beta1, settings.beta2),
                    eps=settings.epsilon,
                    fused=True,
                )
            )
        if muon:
            self._parts.append(
                Muon(
                    [p for name, p in self._named.items() if name in muon],
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    momentum=settings.momentum,
                )
            )

    def clip(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed; their norm before that.

        A norm that is not finite leaves them useless: look before `step`.
        """
        return nn.utils.clip_grad_norm_(self._named.values(), self.max_gradient_norm)

    def step(self, learning_rate_share: float) -> None:
        """One update at this share of the peak learning rate; the gradients are freed."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.learning_rate * learning_rate_share
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by "kind/parameter"; empty before the first step."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._named.items()}
        return {
            f"{kind}/{names[parameter]}": value
            for part in self._parts
            for parameter, values in part.state.items()
            for kind, value in values.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; the tensors are copied.

        Raises:
            FormatError: the names are not those of this model and this algorithm.
        """
        kinds = {name: kind for part in self._parts for kind, name in self._expected(part)}
        expected = {f"{kind}/{name}" for name, all_kinds in kinds.items() for kind in all_kinds}
        if state and expected != state.keys():
            odd = sorted(expected ^ state.keys())
            raise FormatError(f"the optimizer state does not fit: {', '.join(odd[:3])}")
        for part in self._parts:
            part.state.clear()
            if not state:
                continue
            for all_kinds, name in self._expected(part):
                parameter = self._named[name]
                part.state[parameter] = {
                    kind: torch.empty_like(value, device=parameter.device).copy_(value)
                    for kind in all_kinds
                    for value in [state[f"{kind}/{name}"]]
                }

    def _expected(self, part: torch.optim.Optimizer) -> list[tuple[tuple[str, ...], str]]:
        kinds = ("momentum_buffer",) if isinstance(part, Muon) else ("step", "exp_avg", "exp_avg_sq")
        held = {id(parameter) for group in part.param_groups for parameter in group["params"]}
        return [(kinds, name) for name, parameter in self._named.items() if id(parameter) in held]


def _block_matrices(model: LanguageModel) -> set[str]:
    """Weights of every projection but the one onto the vocabulary (Jordan et al. 2024, "Muon": hidden layers only)."""
    output = model.output_matrix
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not output
    }
