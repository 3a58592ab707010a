"""`results.json` and `report.html`: what an evaluation found. The page needs nothing beside itself."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from camelid.base.errors import FormatError
from camelid.base.files import write_text
from camelid.evaluate.task import Measurement, Metric, Sample  # noqa: TC001 - pydantic reads them

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = "results.json"
REPORT = "report.html"
EXCERPT_CHARACTERS = 1000
"""Of one cell of the report; `results.json` holds the whole."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; }
th, td { padding: .25rem 1rem .25rem 0; vertical-align: top; border-bottom: 1px solid #ddd; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 26rem; }
.right { color: #2a7a3b; } .wrong { color: #b03030; } code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #1b1a19; color: #ddd; } th, td { border-color: #444; }
  .right { color: #7cc98d; } .wrong { color: #f08080; } }
"""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Value):
    """Which model was evaluated."""

    source: str
    """The recipe's name or path for it."""
    dtype: str
    """What it computed in."""
    files: dict[str, str]
    """Each of its files → SHA-256."""
    lineage: dict[str, Any] | None = None
    """What its `lineage.json` says of its origin, if it has one."""


class TaskResult(_Value):
    """One task's measurement, and what it depends on."""

    name: str
    settings: dict[str, Any]
    measurement: Measurement
    seconds: float
    """Wall-clock time of the measurement."""
    key: str
    """A hash of all that decides about the result: settings, the task's files, the model's files, sampling."""

    @property
    def main(self) -> Metric:
        """The metric that stands for the task."""
        return self.measurement.metrics[0]

    def text(self) -> str:
        """One line for people, with the metric that stands for the task."""
        return f"{self.name}: {self.main.text()}, {self.measurement.num_items:,} items, {self.seconds:.1f} s"


class EvaluationReport(_Value):
    """What an evaluation found."""

    camelid: str
    """The version that measured."""
    model: ModelRecord
    recipe: dict[str, Any]
    results: tuple[TaskResult, ...]
    """In the recipe's order; those finished so far, where an evaluation was stopped."""

    def result(self, name: str) -> TaskResult:
        """The result of the task with this name in the report.

        Raises:
            KeyError: there is none.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def text(self) -> str:
        """The report for people: every metric, and the notes."""
        lines = []
        for result in self.results:
            lines.append(result.text())
            lines += [f"  {metric.text()}" for metric in result.measurement.metrics[1:]]
            lines += [f"  {note}" for note in result.measurement.notes]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write `results.json` and `report.html`, each atomically.

        Raises:
            ResourceError: the disk is full.
        """
        write_text(folder / REPORT, render(self))
        write_text(folder / RESULTS, self.model_dump_json(indent=2) + "\n")


def read_report(folder: Path) -> EvaluationReport | None:
    """The report in a folder; None if there is none.

    Raises:
        FormatError: `results.json` is damaged, or something else's.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        return EvaluationReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FormatError(
            "these are no evaluation results", where=path, hint="choose another output folder, or remove the file"
        ) from error


def render(report: EvaluationReport) -> str:
    """The page: a table of metrics, then each task's notes and samples, then the model's files."""
    title = escape(f"Evaluation of {report.model.source}")
    rows = "".join(_metric_row(result, metric) for result in report.results for metric in result.measurement.metrics)
    head = (
        "<tr><th>task</th><th>metric</th><th>value</th><th>standard error</th><th>95% interval</th><th>items</th></tr>"
    )
    files = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{digest}</code></td></tr>" for name, digest in report.model.files.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><table>{head}{rows}</table>"
        f"{''.join(_section(result) for result in report.results)}"
        f"<h2>Model</h2><p>Computed in {escape(report.model.dtype)}, by camelid {escape(report.camelid)}.</p>"
        f"<table><tr><th>file</th><th>SHA-256</th></tr>{files}</table></body></html>\n"
    )


def _metric_row(result: TaskResult, metric: Metric) -> str:
    error = "" if metric.standard_error is None else f"{metric.standard_error:.2g}"
    interval = "" if metric.interval is None else f"{metric.interval[0]:.4g} to {metric.interval[1]:.4g}"
    numbers = (f"{metric.value:.5g}", error, interval, f"{metric.num_items:,}")
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{escape(result.name)}</td><td>{escape(metric.name)}</td>{cells}</tr>"


def _section(result: TaskResult) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.measurement.notes)
    rows = "".join(_sample_row(sample) for sample in result.measurement.samples)
    head = "<tr><th></th><th>prompt</th><th>model</th><th>expected</th><th>item</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else ""
    return f"<h2>{escape(result.name)}</h2>{notes}<p>Took {result.seconds:.1f} s.</p>{table}"


def _sample_row(sample: Sample) -> str:
    verdicts = {None: ("", ""), True: ("right", "right"), False: ("wrong", "wrong")}
    style, verdict = verdicts[sample.right]
    texts = "".join(
        f'<td class="text">{_excerpt(text)}</td>' for text in (sample.prompt, sample.output, sample.expected)
    )
    return f'<tr><td class="{style}">{verdict or escape(sample.note)}</td>{texts}<td>{escape(sample.item)}</td></tr>'


def _excerpt(text: str) -> str:
    return escape(text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + " …")
