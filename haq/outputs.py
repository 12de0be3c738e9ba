"""The files that a lead and a deployment read: `front.csv` and `configs/<id>.json`, written from the history."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from haq.accuracy import Measurement
from haq.configfile import config_json, write_config
from haq.front import Point, front
from haq.quality import AGREEMENT, KL, LOSS, TOP1, WORST_CLASS, QualityReport
from haq.rundir import CONFIG_FOLDER, FRONT_FILE, Run
from haq.textfile import write_atomically

COST_COLUMNS = ("size_bytes", "latency_ms", "activation_peak_bytes", "traffic_bytes", "energy_mj", "macs")
QUALITY_COLUMNS = {LOSS: "loss", KL: "kl_nats", AGREEMENT: "agreement", WORST_CLASS: "worst_class_drop_points"}
"""Figure of a report -> its column. The class, and how many samples had no finite output, stand beside them."""

TOP1_COLUMN = {TOP1: "top1_accuracy"}
"""A column only of runs that another metric drives."""

MEASURED_COLUMNS = (
    *("accuracy", "accuracy_low", "accuracy_high", "drop_points", "drop_low", "drop_high", "samples"),
    *(*QUALITY_COLUMNS.values(), "worst_class", "worst_class_samples", "not_finite_samples"),
)
COLUMNS = (
    "target",
    "id",
    "candidate",
    "origin",
    "batch",
    "metric",
    "direction",
    *COST_COLUMNS,
    "size_change_percent",
    "latency_change_percent",
    *MEASURED_COLUMNS,
    *(f"validation_{name}" for name in MEASURED_COLUMNS),
    "fallbacks",
)
"""Accuracy columns are measured on the search split, `validation_` ones on the held-out split; costs are modelled.

accuracy: of the metric that the column `metric` names. drop_points, drop_low, drop_high: points worse than FP32. What
the user's function returned beside it follows in columns of its own, named `quality_...`, and what an artifact measured
in its runtime in those named `artifact_...` (the latest that was recorded). Change is against FP32: as
the same target runs it, but for the size, which is against four bytes a parameter. Unknown is empty.
"""


def fronts(run: Run) -> dict[str, tuple[Point, ...]]:
    """Target -> its front."""
    return {target: front(run.history.candidates, target) for target in run.targets}


def front_row(point: Point, run: Run) -> dict[str, Any]:
    """One row of `front.csv`; what is unknown is left out."""
    result, history = point.result, run.history
    assert history.baseline is not None, "a measured point has a baseline"
    base = history.baseline.costs[result.target]
    row: dict[str, Any] = {
        "target": result.target,
        "id": result.config_id,
        "candidate": point.candidate.number,
        "origin": point.candidate.origin,
        "batch": run.info["targets"][result.target]["batch"],
        "metric": run.metric.name,
        "direction": run.metric.direction,
        **{name: result.costs[name] for name in COST_COLUMNS if name in result.costs},
        "size_change_percent": _change_percent(result.costs, base, "size_bytes"),
        "latency_change_percent": _change_percent(result.costs, base, "latency_ms"),
        "fallbacks": len(result.fallbacks),
    }
    for prefix, m in (("", result.measurement), ("validation_", history.validation(result.executed.signature))):
        if m is not None:
            row |= {prefix + name: value for name, value in _measured(m).items()}
    if (deployment := history.deployment(result.config_id)) is not None:
        row |= {
            "artifact_latency_ms": deployment.latency_ms,
            "artifact_accuracy": deployment.accuracy,
            "artifact_split": deployment.measurement.split,
            "artifact_size_bytes": deployment.initializer_bytes,
        }
    return row


def write_outputs(run: Run) -> None:
    """Write `front.csv` and one config per front point; configs of points that left the front are removed."""
    text = io.StringIO()
    rows = [front_row(point, run) for points in fronts(run).values() for point in points]
    extra = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    table = csv.DictWriter(text, (*COLUMNS, *extra), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    folder = run.path / CONFIG_FOLDER
    folder.mkdir(exist_ok=True)
    written = set()
    for points in fronts(run).values():
        for point in points:
            validation = run.history.validation(point.result.executed.signature)
            path = folder / f"{point.result.config_id}.json"
            write_config(path, config_json(point, run.info, validation))
            written.add(path)
    for old in set(folder.glob("*.json")) - written:
        old.unlink()
    write_atomically(run.path / FRONT_FILE, text.getvalue())


def _measured(m: Measurement) -> dict[str, Any]:
    """The measured columns; without per-sample scores there are no intervals."""
    row: dict[str, Any] = {"accuracy": m.accuracy, "drop_points": m.drop_points, "samples": m.samples}
    if m.accuracy_interval is not None:
        row |= {"accuracy_low": m.accuracy_interval.low, "accuracy_high": m.accuracy_interval.high}
    if m.drop_interval is not None:
        row |= {"drop_low": m.drop_interval.low, "drop_high": m.drop_interval.high}
    return row if m.quality is None else {**row, **_quality(m.quality)}


def quality_column(name: str) -> str:
    """The column of a figure beside the main metric."""
    return {**QUALITY_COLUMNS, **TOP1_COLUMN}.get(name, f"quality_{name}")


def _quality(report: QualityReport) -> dict[str, Any]:
    known = {figure.name: figure.value for figure in report.figures if figure.value is not None}
    row: dict[str, Any] = {quality_column(name): value for name, value in known.items()}
    if report.classes is not None:
        row |= {"worst_class": report.classes.worst, "worst_class_samples": report.classes.worst_samples}
        row["not_finite_samples"] = report.not_finite
    return row


def _change_percent(costs: Mapping[str, float], base: Mapping[str, float], figure: str) -> float:
    return 100 * (costs[figure] / base[figure] - 1)
