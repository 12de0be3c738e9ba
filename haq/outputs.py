"""The files that a lead and a deployment read: `front.csv` and `configs/<id>.json`, written from the history."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from haq.accuracy import Measurement
from haq.configfile import config_json, write_config
from haq.front import Point, front
from haq.history import History
from haq.rundir import CONFIG_FOLDER, FRONT_FILE, Run
from haq.textfile import write_atomically

COST_COLUMNS = ("size_bytes", "latency_ms", "activation_peak_bytes", "traffic_bytes", "energy_mj", "macs")
MEASURED_COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "drop_points", "drop_low", "drop_high", "samples")
COLUMNS = (
    "target",
    "id",
    "candidate",
    "origin",
    "batch",
    *COST_COLUMNS,
    "size_change_percent",
    "latency_change_percent",
    *MEASURED_COLUMNS,
    *(f"validation_{name}" for name in MEASURED_COLUMNS),
    "fallbacks",
)
"""Accuracy columns are measured on the search split, `validation_` ones on the held-out split; costs are modelled.

drop_points, drop_low, drop_high: points under FP32. Change is against FP32: as the same
target runs it, but for the size, which is against four bytes a parameter. Unknown is empty.
"""


def fronts(run: Run) -> dict[str, tuple[Point, ...]]:
    """Target -> its front."""
    return {target: front(run.history.candidates, target) for target in run.targets}


def front_row(point: Point, history: History, batch: int) -> dict[str, Any]:
    """One row of `front.csv`; what is unknown is left out."""
    result = point.result
    assert history.baseline is not None, "a measured point has a baseline"
    base = history.baseline.costs[result.target]
    row: dict[str, Any] = {
        "target": result.target,
        "id": result.config_id,
        "candidate": point.candidate.number,
        "origin": point.candidate.origin,
        "batch": batch,
        **{name: result.costs[name] for name in COST_COLUMNS if name in result.costs},
        "size_change_percent": _change_percent(result.costs, base, "size_bytes"),
        "latency_change_percent": _change_percent(result.costs, base, "latency_ms"),
        "fallbacks": len(result.fallbacks),
    }
    for prefix, m in (("", result.measurement), ("validation_", history.validation(result.executed.signature))):
        if m is not None:
            row |= {prefix + name: value for name, value in _measured(m).items()}
    return row


def write_outputs(run: Run) -> None:
    """Write `front.csv` and one config per front point; configs of points that left the front are removed."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    folder = run.path / CONFIG_FOLDER
    folder.mkdir(exist_ok=True)
    written = set()
    for target, points in fronts(run).items():
        for point in points:
            table.writerow(front_row(point, run.history, run.info["targets"][target]["batch"]))
            validation = run.history.validation(point.result.executed.signature)
            path = folder / f"{point.result.config_id}.json"
            write_config(path, config_json(point, run.info, validation))
            written.add(path)
    for old in set(folder.glob("*.json")) - written:
        old.unlink()
    write_atomically(run.path / FRONT_FILE, text.getvalue())


def _measured(m: Measurement) -> dict[str, float]:
    """The measured columns; without per-sample scores there are no intervals."""
    row = {"accuracy": m.accuracy, "drop_points": m.drop_points, "samples": m.samples}
    if m.accuracy_interval is not None:
        row |= {"accuracy_low": m.accuracy_interval.low, "accuracy_high": m.accuracy_interval.high}
    if m.drop_interval is not None:
        row |= {"drop_low": m.drop_interval.low, "drop_high": m.drop_interval.high}
    return row


def _change_percent(costs: Mapping[str, float], base: Mapping[str, float], figure: str) -> float:
    return 100 * (costs[figure] / base[figure] - 1)
