"""Shows what a run's files answer for another target or other limits: measured points and *predicted* ones."""

from __future__ import annotations

from typing import Any

from haq.accuracy import Z95
from haq.cli.show import echo, echo_json, megabytes, milliseconds, table
from haq.constraints import Constraints
from haq.rundir import Run


def show_resolved(run: Run, target: str, limits: Constraints, batch: int | None, *, as_json: bool) -> None:
    """Print the front on a target within limits, or as JSON; nothing is measured and no model is loaded."""
    from haq.resolving import resolve  # the allocator loads scipy, which no other command needs

    found = resolve(run, target, limits, batch)
    rows = [_row(answer, found.base) for answer in found.answers]
    if as_json:
        about = {"batch": found.target.batch, "title": found.target.title, **found.target.trust.to_json()}
        echo_json({"target": found.target.name, **about, "points": rows})
        return
    title = (
        f"{run.info['provenance'].get('model', run.path)} on {found.target.name} ({found.target.title}): latency "
        f"modelled {found.target.trust}, ms per batch of {found.target.batch}; {run.metric.noun} measured where it "
        "says so, else predicted from sensitivities"
    )
    columns = ("drop is", "MB", "vs FP32", "ms", "vs FP32", "drop, points", "95 %", "widths")
    table(title, columns, [_cells(row) for row in rows], left=1)
    if any(row["is_bound"] for row in rows):
        echo("* formats that were not measured count as a narrower one that was: the drop is predicted from above")


def _row(answer: Any, base: Any) -> dict[str, Any]:
    costs, m = answer.costs, answer.measurement
    widths = list(answer.requested.values())
    row: dict[str, Any] = {
        "accuracy_is": "predicted" if m is None else "measured",
        "size_bytes": costs["size_bytes"],
        "latency_ms": costs["latency_ms"],
        "size_change_percent": 100 * (costs["size_bytes"] / base["size_bytes"] - 1),
        "latency_change_percent": 100 * (costs["latency_ms"] / base["latency_ms"] - 1),
        "drop_points": answer.drop_points if m is None else m.drop_points,
        "layers_by_bits": {str(bits): widths.count(bits) for bits in sorted(set(widths))},
        "is_bound": answer.is_bound and m is None,
        "assignment": answer.requested.to_json(),
    }
    if m is None:
        half = Z95 * answer.deviation_points
        return {**row, "drop_low": answer.drop_points - half, "drop_high": answer.drop_points + half}
    if m.drop_interval is not None:
        row |= {"drop_low": m.drop_interval.low, "drop_high": m.drop_interval.high}
    return {**row, "samples": m.samples}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    interval = f"{row['drop_low']:+.2f} to {row['drop_high']:+.2f}" if "drop_low" in row else "unknown"
    return (
        row["accuracy_is"] + ("*" if row["is_bound"] else ""),
        megabytes(row["size_bytes"]),
        f"{row['size_change_percent']:+.1f} %",
        milliseconds(row["latency_ms"]),
        f"{row['latency_change_percent']:+.1f} %",
        f"{row['drop_points']:+.2f}",
        interval,
        ", ".join(f"{count} at {bits}" for bits, count in row["layers_by_bits"].items()),
    )
