"""`camelid verify`: whether two checkpoints are the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from camelid.evaluate.verify import Budget, Comparison

app = typer.Typer(add_completion=False, help="Compare two checkpoints of any formats: tokens, logits, continuations.")

MaxKL = Annotated[
    float | None, typer.Option("--max-kl", min=0, help="Accept a mean KL divergence up to this, in nats per token.")
]
MaxLogit = Annotated[
    float | None, typer.Option("--max-logit", min=0, help="Accept differences of single logits up to this.")
]


@app.command()
def verify(
    one: Annotated[str, typer.Argument(metavar="A", help="The reference: a path or a model that was pulled.")],
    other: Annotated[str, typer.Argument(metavar="B", help="What is compared with it.")],
    max_kl: MaxKL = None,
    max_logit: MaxLogit = None,
    dtype: Annotated[str | None, typer.Option(help="What both compute in; float32 where it fits.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; the best one present.")] = None,
) -> None:
    """Compare two checkpoints of any formats. Exit code 1 past the budget; without one they must be equal."""
    from camelid.evaluate.verify import LOSSLESS, Budget
    from camelid.evaluate.verify import verify as compare

    budget = LOSSLESS if max_kl is None and max_logit is None else Budget(max_logit=max_logit, max_kl=max_kl)
    report(compare(one, other, device=device, dtype=dtype), budget)


def report(comparison: Comparison, budget: Budget) -> None:
    """Print the figures and the verdict; leave with code 1 if the two are too far apart."""
    print(comparison.text())
    violations = comparison.violations(budget)
    print(f"{'verdict':<14} " + ("; ".join(violations) if violations else "the same model, within the budget"))
    if violations:
        raise typer.Exit(1)
