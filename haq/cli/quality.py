"""The table behind `haq front --quality`: what was measured beside the metric that drives the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from haq.cli.show import echo, table
from haq.history import SEARCH
from haq.outputs import quality_column
from haq.quality import Quality
from haq.rundir import Run

UNKNOWN = "unknown"


def show_quality(run: Run, target: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print every figure of the points, with FP32 as the first row, and which way each is better."""
    base = run.history.baseline
    report = base.measurements[SEARCH].quality if base else None
    if report is None:
        echo(f"quality on {target}: nothing was measured beside {run.metric.noun}")
        return
    figures = report.figures
    fp32 = {_column(figure): figure.value for figure in figures if figure.value is not None}
    columns = ("id", *(_column(figure) for figure in figures), "worst class", "not finite")
    better = ", ".join(f"{_column(figure)} {figure.direction}" for figure in figures)
    cells = [_cells({"id": "FP32", **fp32}, figures), *(_cells(row, figures) for row in rows)]
    table(f"quality on {target}, measured on the search split; better: {better}", columns, cells)


def _column(figure: Quality) -> str:
    return quality_column(figure.name)


def _cells(row: Mapping[str, Any], figures: Sequence[Quality]) -> tuple[str, ...]:
    values = [row.get(_column(figure)) for figure in figures]
    has_lost = row.get("worst_class_drop_points", 0) > 0 and "worst_class" in row
    worst = f"{row['worst_class']} (n = {row['worst_class_samples']:,})" if has_lost else ""
    shown = (UNKNOWN if value is None else f"{value:.4g}" for value in values)
    return (row["id"], *shown, worst, str(row.get("not_finite_samples", 0)))
