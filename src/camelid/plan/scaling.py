"""Which model and how many tokens make the best of a compute budget. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

E = 1.8172
A, ALPHA = 482.01, 0.3478
B, BETA = 2085.43, 0.3658
"""Loss in nats = E + A / parameters^ALPHA + B / tokens^BETA. The form is approach 3 of Hoffmann et al. 2022, arXiv
2203.15556, §3.3; the constants are the refit of the same runs by Besiroglu et al. 2024, arXiv 2404.10102, §3: the
paper's own do not fit its data, nor its other two approaches. The runs had 44 million to 16 billion parameters and a
vocabulary and corpus of their own, so a loss is no forecast for another corpus; the ratio is."""

FLOPS_PER_PARAMETER_AND_TOKEN = 6


@dataclass(frozen=True)
class ComputeOptimal:
    """The optimum of a budget."""

    flops: float
    parameters: float
    tokens: float

    @property
    def tokens_per_parameter(self) -> float:
        """About 20, falling slowly as budgets grow."""
        return self.tokens / self.parameters


def compute_optimal(flops: float) -> ComputeOptimal:
    """Parameters N and tokens D with the least loss among all with 6·N·D = flops.

    N = G · (flops / 6)^(β / (α + β)) with G = (α·A / (β·B))^(1 / (α + β)); Hoffmann et al. 2022, equation 4.
    """
    assert flops > 0, "a budget is positive"
    product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
    factor = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = factor * product ** (BETA / (ALPHA + BETA))
    return ComputeOptimal(flops=flops, parameters=parameters, tokens=product / parameters)


def expected_loss(parameters: float, tokens: float) -> float:
    """Nats per token of the fit's corpus and vocabulary."""
    loss: float = E + A * parameters**-ALPHA + B * tokens**-BETA
    return loss
