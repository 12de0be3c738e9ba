"""Shows what a run's files answer for another target or other limits: measured points and *predicted* ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from haq.accuracy import Z95
from haq.cli.show import echo, echo_json, megabytes, milliseconds, table
from haq.constraints import Constraints
from haq.precision import BIT_WIDTHS
from haq.rundir import Run

if TYPE_CHECKING:  # the allocator loads scipy, which no other command needs
    from haq.engine.problem import Target
    from haq.resolving import Answer, Resolved


def show_resolved(run: Run, targets: Sequence[str], limits: Constraints, batch: int | None, *, as_json: bool) -> None:
    """Print the front on each target within limits, or as JSON; nothing is measured and no model is loaded."""
    from haq.resolving import resolve

    found = [resolve(run, target, limits, batch) for target in targets]
    rows = {each.target.name: [_row(answer, each.base) for answer in each.answers] for each in found}
    if as_json:
        about = {each.target.name: _about(each.target) for each in found}
        unknown = {each.target.name: each.unknown for each in found if each.unknown}
        echo_json({"targets": about, "fronts": rows, "unknown": unknown})
        return
    for each in found:
        _show(run, each, rows[each.target.name])
    if any(row["is_bound"] for found_rows in rows.values() for row in found_rows):
        echo("* formats that were not measured count as a narrower one that was: the drop is predicted from above")
    if limits.max_class_drop_points is not None:
        echo("the worst class's drop is only known where it was measured, so nothing predicted is shown")


def _show(run: Run, found: Resolved, rows: Sequence[Mapping[str, Any]]) -> None:
    target = found.target
    title = (
        f"{run.info['provenance'].get('model', run.path)} on {target.name} ({target.title}): latency modelled "
        f"{target.trust}, ms per batch of {target.batch}; {run.metric.noun} measured where it says so, else predicted "
        "from sensitivities"
    )
    columns = ("drop is", "MB", "vs FP32", "ms", "vs FP32", "drop, points", "95 %", "widths")
    table(title, columns, [_cells(row) for row in rows], left=1)
    for bits in BIT_WIDTHS:
        groups = [name for name, missing in found.unknown.items() if bits in missing]
        if groups:
            some = f"{', '.join(groups[:3])}{' and others' if len(groups) > 3 else ''}"
            echo(f"nothing is predicted with {bits} bits on {some}: what runs there was not measured, nor less")


def _about(target: Target) -> dict[str, Any]:
    return {"batch": target.batch, "title": target.title, **target.trust.to_json()}


def _row(answer: Answer, base: Mapping[str, float]) -> dict[str, Any]:
    costs, m = answer.costs, answer.measurement
    widths = list(answer.requested.values())
    row: dict[str, Any] = {
        "drop_is": "predicted" if m is None else "measured in part" if m.is_partial else "measured",
        "size_bytes": costs["size_bytes"],
        "latency_ms": costs["latency_ms"],
        "size_change_percent": 100 * (costs["size_bytes"] / base["size_bytes"] - 1),
        "latency_change_percent": 100 * (costs["latency_ms"] / base["latency_ms"] - 1),
        "drop_points": answer.drop_points,
        "layers_by_bits": {str(bits): count for bits in BIT_WIDTHS if (count := widths.count(bits))},
        "is_bound": answer.is_bound and m is None,
        "assignment": answer.requested.to_json(),
    }
    if m is None:
        half = Z95 * answer.deviation_points
        return {**row, "drop_low": answer.drop_points - half, "drop_high": answer.drop_points + half}
    if m.drop_interval is not None:
        row |= {"drop_low": m.drop_interval.low, "drop_high": m.drop_interval.high}
    return {**row, "accuracy": m.accuracy, "samples": m.samples}


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{row['drop_low']:+.2f} to {row['drop_high']:+.2f}" if "drop_low" in row else "unknown"
    return (
        row["drop_is"] + ("*" if row["is_bound"] else ""),
        megabytes(row["size_bytes"]),
        f"{row['size_change_percent']:+.1f} %",
        milliseconds(row["latency_ms"]),
        f"{row['latency_change_percent']:+.1f} %",
        f"{row['drop_points']:+.2f}",
        interval,
        ", ".join(f"{count} at {bits}" for bits, count in row["layers_by_bits"].items()),
    )
