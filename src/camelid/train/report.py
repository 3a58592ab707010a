"""`report.html`: a run on one page that needs nothing beside itself. No scripts, no fonts, no network."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from camelid.base.files import write_text
from camelid.checkpoint.lineage import LINEAGE
from camelid.train.metrics import METRICS, read_metrics
from camelid.train.samples import SAMPLES, read_samples
from camelid.train.settings import RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from camelid.train.metrics import StepMetrics
    from camelid.train.samples import Sample

REPORT = "report.html"
MAX_POINTS = 400
"""Of one curve; longer runs show the mean of each stretch of steps."""
MAX_SAMPLED_STEPS = 20
"""Whose samples are shown; `samples.jsonl` has all."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 220, 64, 24, 8

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; } polyline { fill: none; stroke: #b5651d; stroke-width: 1.5; }
line { stroke: #ddd; } text { font-size: 11px; fill: #666; }
pre { background: #f6f4f1; padding: 1rem; overflow-x: auto; } td, th { padding: .1rem 1rem .1rem 0; text-align: left; }
.samples td { vertical-align: top; white-space: pre-wrap; }
@media (prefers-color-scheme: dark) { body { background: #1b1a19; color: #ddd; } pre { background: #262422; }
  line { stroke: #444; } text { fill: #aaa; } polyline { stroke: #e0a060; } }
"""


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a run."""

    title: str
    points: Sequence[tuple[float, float]]
    """(step, value), steps ascending; values that are not finite are left out."""


def write_report(run_folder: Path) -> Path:
    """Write the report of a run from what its folder holds; an earlier one is replaced.

    Raises:
        FormatError: `metrics.jsonl` is damaged.
        ResourceError: the disk is full.
    """
    path = run_folder / REPORT
    steps, samples = read_metrics(run_folder / METRICS), read_samples(run_folder / SAMPLES)
    write_text(path, render(run_folder.name, steps, _documents(run_folder), samples))
    return path


def render(
    title: str,
    steps: Sequence[StepMetrics],
    documents: Sequence[tuple[str, str]],
    samples: Sequence[Sample] = (),
) -> str:
    """The page: a summary, the curves, samples, and documents (heading, text) shown as they are."""
    curves = "".join(
        f"<section><h2>{escape(curve.title)}</h2>{draw(curve)}</section>" for curve in _curves(steps) if curve.points
    )
    texts = "".join(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>" for heading, text in documents)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{_summary(steps)}"
        f'<div class="curves">{curves}</div>{_samples(samples)}{texts}</body></html>\n'
    )


def draw(curve: Curve) -> str:
    """The curve as an SVG element with its scales."""
    points = thin([(x, y) for x, y in curve.points if math.isfinite(y)])
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = (_range([point[axis] for point in points]) for axis in (0, 1))
    inner_width, inner_height = WIDTH - LEFT, HEIGHT - BOTTOM - TOP
    path = " ".join(
        f"{LEFT + (x - x_low) / (x_high - x_low) * inner_width:.1f},"
        f"{TOP + (y_high - y) / (y_high - y_low) * inner_height:.1f}"
        for x, y in points
    )
    grid = ""
    for i in range(5):
        y = TOP + i / 4 * inner_height
        value = y_high - i / 4 * (y_high - y_low)
        grid += (
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{x_low:.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step {x_high:.0f}</text>'
    )
    label = escape(curve.title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'{grid}{ends}<polyline points="{path}"/></svg>'
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the means of stretches of equal length."""
    stride = -(-len(points) // MAX_POINTS)
    if stride <= 1:
        return list(points)
    stretches = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _curves(steps: Sequence[StepMetrics]) -> list[Curve]:
    return [
        Curve("loss (nats per token)", [(s.step, s.loss) for s in steps]),
        Curve("bits per byte", _present((s.step, s.bits_per_byte) for s in steps)),
        Curve("validation loss (nats per token)", _present((s.step, s.validation_loss) for s in steps)),
        Curve("validation bits per byte", _present((s.step, s.validation_bits_per_byte) for s in steps)),
        Curve("learning rate", [(s.step, s.learning_rate) for s in steps]),
        Curve("gradient norm, before clipping", [(s.step, s.gradient_norm) for s in steps]),
        Curve("tokens per second", [(s.step, s.tokens_per_second) for s in steps]),
        Curve("MFU (share of the measured matrix product)", [(s.step, s.mfu) for s in steps]),
    ]


def _present(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """The points whose value is known."""
    return [(x, y) for x, y in points if y is not None]


def _samples(samples: Sequence[Sample]) -> str:
    """What the model wrote at the last `MAX_SAMPLED_STEPS` steps that have samples, the newest first."""
    if not samples:
        return ""
    shown = sorted({sample.step for sample in samples}, reverse=True)[:MAX_SAMPLED_STEPS]
    rows = "".join(
        f"<tr><td>{sample.step:,}</td><td><b>{escape(sample.prompt)}</b></td><td>{escape(sample.text)}</td></tr>"
        for step in shown
        for sample in samples
        if sample.step == step
    )
    return f'<h2>Samples</h2><table class="samples"><tr><th>step</th><th>prompt</th><th>text</th></tr>{rows}</table>'


def _summary(steps: Sequence[StepMetrics]) -> str:
    if not steps:
        return "<p>No step has been made.</p>"
    last = steps[-1]
    seconds, tokens = sum(s.seconds for s in steps), sum(s.tokens for s in steps)
    held_out = [s for s in steps if s.validation_loss is not None][-1:]
    rows = {
        "steps": f"{last.step:,}",
        "tokens": f"{tokens:,}",
        "loss": f"{last.loss:.4f} nats per token",
        "bits per byte": _shown(last.bits_per_byte),
        **{f"validation loss, step {s.step:,}": _shown(s.validation_loss) for s in held_out},
        **{f"validation bits per byte, step {s.step:,}": _shown(s.validation_bits_per_byte) for s in held_out},
        "time in steps": f"{seconds:,.0f} s",
        "speed": f"{tokens / seconds:,.0f} tokens/s",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def _documents(run_folder: Path) -> list[tuple[str, str]]:
    """The recipe, and the lineage of the newest checkpoint."""
    documents = []
    if (run_folder / RECIPE).is_file():
        documents.append(("Recipe", (run_folder / RECIPE).read_text(encoding="utf-8")))
    lineages = sorted(run_folder.glob(f"checkpoints/step-*/model/{LINEAGE}"))
    if lineages:
        lineage = json.loads(lineages[-1].read_text(encoding="utf-8"))
        documents.append(("Lineage", json.dumps(lineage, indent=2, ensure_ascii=False)))
    return documents
