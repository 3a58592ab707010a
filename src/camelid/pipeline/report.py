"""`report.html` of a pipeline: from the texts that went in to the answers that came out, on one page by itself."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from camelid.base.files import format_bytes, write_text
from camelid.train.report import STYLE, Curve, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from camelid.evaluate.task import Sample
    from camelid.pipeline.keys import KeyedStage

REPORT = "report.html"
MORE_STYLE = """
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; } h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem 1.2rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8883; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 28rem; }
svg { max-width: 560px; }
"""
EXCERPT_CHARACTERS = 600
"""Of one cell."""
NUM_SAMPLES = 12
"""Of one task."""


def write_report(output: Path, stages: Sequence[KeyedStage], ran: frozenset[str]) -> Path:
    """Write the page from what the stages' folders hold; an earlier one is replaced.

    Args:
        output: the pipeline's folder.
        stages: all of them, done or not.
        ran: the names of those that were worked on in the last call.

    Raises:
        FormatError: something in a stage's folder is damaged.
        ResourceError: the disk is full.
    """
    title = escape(output.resolve().name)
    parts = [_stages(stages, ran)]
    for stage in stages:
        section = _SECTIONS.get(stage.stage.kind_name)
        if section and stage.folder.is_dir():
            content = section(stage)
            parts.append(f"<section><h2>{escape(stage.name)}</h2>{content}</section>" if content else "")
    parts.append(_lineage(stages))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_mark(stages)}<title>{title}</title>'
        f"<style>{STYLE}{MORE_STYLE}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
    write_text(output / REPORT, page)
    return output / REPORT


def tells_of(output: Path, stages: Sequence[KeyedStage]) -> bool:
    """Whether the page that lies there is of these stages and no others."""
    path = output / REPORT
    return path.is_file() and _mark(stages) in path.read_text(encoding="utf-8")


def _mark(stages: Sequence[KeyedStage]) -> str:
    """Hidden in the page: which stages it is of."""
    return f'<meta name="stages" content="{" ".join(stage.key for stage in stages)}">'


def _stages(stages: Sequence[KeyedStage], ran: frozenset[str]) -> str:
    from camelid.train.progress import format_seconds

    rows = []
    for stage in stages:
        done = stage.record is not None
        state = ("done" if done else "stopped") if stage.name in ran else "cached" if done else "waiting"
        time = format_seconds(stage.record.seconds) if stage.record else ""
        after = ", ".join(stage.after)
        rows.append((stage.name, stage.stage.kind_name, after, state, time, stage.folder.name))
    return _table(("stage", "kind", "builds on", "state", "time", "folder"), rows)


def _prepared(stage: KeyedStage) -> str:
    """What cleaning kept and dropped, and what was written."""
    from camelid.data.manifest import MANIFEST, read_manifest
    from camelid.data.report import CleaningReport
    from camelid.pipeline.data_stages import CLEAN, SHARDS

    found = stage.folder / CLEAN / "report.json"
    if not found.is_file():
        return ""
    report = CleaningReport.model_validate_json(found.read_bytes())
    amounts = [
        ("read", f"{report.num_documents:,}", format_bytes(report.num_bytes)),
        ("kept", f"{report.num_kept:,}", format_bytes(report.num_bytes_kept)),
    ]
    page = _table(("", "documents", "size"), amounts)
    dropped = [
        (step.step, rule.rule, f"{rule.num_documents:,}", format_bytes(rule.num_bytes), _example(rule.examples))
        for step in report.steps
        for rule in step.rules
    ]
    heads = ("step", "dropped because", "documents", "size", "for example")
    page += f"<h3>Dropped</h3>{_table(heads, dropped)}" if dropped else "<p>Nothing was dropped.</p>"
    if (stage.folder / SHARDS / MANIFEST).is_file():
        manifest = read_manifest(stage.folder / SHARDS)
        written = [
            (split, *(f"{sum(getattr(s, n) for s in shards):,}" for n in ("num_tokens", "num_documents")))
            for split, shards in (("train", manifest.train), ("validation", manifest.validation))
        ]
        page += f"<h3>Written</h3>{_table(('split', 'tokens', 'documents'), written)}"
    return page


def _example(examples: Sequence[Any]) -> str:
    return f"{examples[0].id} ({examples[0].detail}): {examples[0].excerpt}" if examples else ""


def _trained(stage: KeyedStage) -> str:
    """The curves, and what the model last wrote."""
    from camelid.train.metrics import METRICS, read_metrics
    from camelid.train.progress import format_seconds

    steps = read_metrics(stage.folder / METRICS)
    if not steps:
        return ""
    last, tokens, seconds = steps[-1], sum(step.tokens for step in steps), sum(step.seconds for step in steps)
    page = (
        f"<p>{last.step:,} steps, {tokens:,} tokens in {format_seconds(seconds)}, all attempts together; "
        f"last loss {last.loss:.4f}.</p>"
    )
    curves = [
        Curve("loss (nats per token)", [(s.step, s.loss) for s in steps]),
        Curve("bits per byte", [(s.step, s.bits_per_byte) for s in steps if s.bits_per_byte is not None]),
        Curve(
            "bits per byte, held out",
            [(s.step, s.validation_bits_per_byte) for s in steps if s.validation_bits_per_byte is not None],
        ),
    ]
    drawn = "".join(f"<section><h3>{escape(c.title)}</h3>{draw(c)}</section>" for c in curves if len(c.points) > 1)
    return page + f'<div class="curves">{drawn}</div>' + _written(stage.folder)


def _written(run_folder: Path) -> str:
    """Samples of the last step that has some."""
    from camelid.train.samples import SAMPLES, read_samples

    samples = read_samples(run_folder / SAMPLES)
    if not samples:
        return ""
    last = samples[-1].step
    rows = [(sample.prompt, sample.text) for sample in samples if sample.step == last]
    return f"<h3>What it wrote at step {last:,}</h3>{_table(('prompt', 'text'), rows, wide=True)}"


def _evaluated(stage: KeyedStage) -> str:
    """The metrics, and some of the items."""
    from camelid.evaluate.report import read_report

    report = read_report(stage.folder)
    if report is None:
        return ""
    metrics = [
        (
            result.name,
            metric.name,
            f"{metric.value:.4g}" + ("" if metric.standard_error is None else f" ± {metric.standard_error:.2g}"),
            f"{metric.num_items:,}",
        )
        for result in report.results
        for metric in result.measurement.metrics
    ]
    page = f"<p>{escape(report.model.source)}</p>{_table(('task', 'metric', 'value', 'items'), metrics)}"
    for result in report.results:
        rows = [(_verdict(s), s.prompt, s.output, s.expected) for s in result.measurement.samples[:NUM_SAMPLES]]
        if rows:
            table = _table(("", "prompt", "model", "expected"), rows, wide=True)
            page += f"<h3>{escape(result.name)}</h3>{table}"
    return page


def _verdict(sample: Sample) -> str:
    return sample.note if sample.right is None else "right" if sample.right else "wrong"


_SECTIONS: dict[str, Callable[[KeyedStage], str]] = {
    "prepare": _prepared,
    "pretrain": _trained,
    "sft": _trained,
    "evaluate": _evaluated,
}


def _lineage(stages: Sequence[KeyedStage]) -> str:
    """Every stage's key and what it read, and the last model's own lineage."""
    from camelid.checkpoint.lineage import LINEAGE

    keys = [
        (stage.name, stage.key, ", ".join(f"{name} {key[:8]}" for name, key in stage.after.items())) for stage in stages
    ]
    inputs = {(file.path, file.sha256, format_bytes(file.bytes)) for stage in stages for file in stage.inputs}
    page = f"<section><h2>Lineage</h2>{_table(('stage', 'key', 'builds on'), keys)}"
    page += f"<h3>Files that were read</h3>{_table(('file', 'SHA-256', 'size'), sorted(inputs))}"
    models = [stage for stage in stages if stage.stage.kind.makes_model and stage.record is not None]
    if models and (models[-1].result / LINEAGE).is_file():
        text = (models[-1].result / LINEAGE).read_text(encoding="utf-8")
        shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        page += f"<h3>{escape(models[-1].name)}</h3><pre>{escape(shown)}</pre>"
    return page + "</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, wide: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    style = ' class="text"' if wide else ""
    body = "".join("<tr>" + "".join(f"<td{style}>{_excerpt(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _excerpt(text: str) -> str:
    return escape(text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " …")
