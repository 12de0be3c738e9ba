"""`haq front`, `haq pick` and `haq report`: what a run found, and one point of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from haq.cli.quality import show_quality
from haq.cli.resolved import show_resolved
from haq.cli.show import echo, echo_json, json_option, megabytes, milliseconds, table
from haq.configfile import config_json, write_config
from haq.constraints import Constraints
from haq.deployed import write_rows
from haq.errors import InputError, lookup
from haq.front import MINIMIZE, joint_front, pick
from haq.outputs import front_row, fronts
from haq.quality import MainMetric
from haq.rundir import Run, read_run
from haq.trust import Trust

_DIR = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


_LIMITS = (
    click.option("--max-drop", type=float, metavar="POINTS", help="Largest accuracy drop; 1 is one point."),
    click.option("--max-class-drop", type=float, metavar="POINTS", help="Largest drop of any single class."),
    click.option("--max-latency-ms", type=float, help="Largest latency per batch."),
    click.option("--max-size-mb", type=float, help="Largest size of the weights."),
    click.option("--max-memory-mb", type=float, help="Largest peak of the activations."),
    click.option("--max-energy-mj", type=float, help="Largest energy per batch."),
)


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the limits of one target to a command; they arrive as keyword arguments."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


@click.command()
@_DIR
@click.option("--target", "-t", help="Only this target: one of the run, or any other, for which points are predicted.")
@click.option("--batch", "-b", type=int, help="Samples per inference on another target. [as in the run]")
@_limit_options
@click.option("--quality", is_flag=True, help="Also loss, KL divergence, agreement and the worst class.")
@json_option
def front(
    directory: Path, target: str | None, batch: int | None, *, quality: bool, as_json: bool, **limits: float | None
) -> None:
    """Print the points that nobody beats in size, latency and accuracy, per target and jointly.

    With limits, or for another target or batch, the answer also holds points that are *predicted* from the run's
    sensitivities; nothing is measured, and no model is loaded.
    """
    run = read_run(directory)
    asked = constraints(limits)
    if asked != Constraints() or batch is not None or (target is not None and target not in run.targets):
        show_resolved(run, target or _only_target(run, None), asked, batch, as_json=as_json)
        return
    rows = front_rows(run)
    if target is not None:
        rows = {target: lookup(rows, target, "target of this run", where=str(directory))}
    joint = [candidate.number for candidate in joint_front(run.history.candidates)]
    if as_json:
        echo_json({"targets": run.info["targets"], "fronts": rows, "joint": joint})
        return
    for name, found in rows.items():
        show_front(run, name, found)
        if quality:
            show_quality(run, name, found)
    if len(rows) > 1:
        echo(f"joint front, good on all {len(rows)} targets: candidates {', '.join(map(str, joint)) or 'none'}")


@click.command(name="pick")
@_DIR
@click.option("--target", "-t", help="The target to deploy on; needed where the run has several.")
@_limit_options
@click.option("--minimize", type=click.Choice(list(MINIMIZE)), default="size", show_default=True)
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Where the config is written.")
@json_option
def pick_command(
    directory: Path,
    target: str | None,
    minimize: str,
    out: Path,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Choose the point of the front that is best within further limits, and write its config."""
    run = read_run(directory)
    point = pick(run.history.candidates, _only_target(run, target), constraints(limits), minimize)
    config = config_json(point, run.info, run.history.validation(point.result.executed.signature))
    write_config(out, config)
    if as_json:
        echo_json(config)
        return
    show_front(run, point.result.target, [front_row(point, run)])
    echo(f"wrote {out}")


@click.command()
@_DIR
@click.option("--measurements", type=click.Path(path_type=Path), help="Write what artifacts took, for haq calibrate.")
def report(directory: Path, measurements: Path | None) -> None:
    """Print the brief and the fronts of a run, and rewrite its front.png, front.csv and configs."""
    from haq.api import rewrite_outputs  # matplotlib loads behind this, and only here

    run = read_run(directory)
    echo(rewrite_outputs(run))
    echo("")
    for name, found in front_rows(run).items():
        show_front(run, name, found)
    if run.history.deployments:
        show_deployments(run)
    if measurements is not None:
        echo(f"wrote {write_rows(directory, measurements)} rows to {measurements}")
    echo(f"wrote {directory / 'front.png'}")


def constraints(limits: Mapping[str, float | None]) -> Constraints:
    """The limits as they were given on the command line, in the units of the cost model."""
    size_mb, memory_mb = limits["max_size_mb"], limits["max_memory_mb"]
    return Constraints(
        max_drop_points=limits["max_drop"],
        max_class_drop_points=limits["max_class_drop"],
        max_latency_ms=limits["max_latency_ms"],
        max_size_bytes=None if size_mb is None else size_mb * 1e6,
        max_memory_bytes=None if memory_mb is None else memory_mb * 1e6,
        max_energy_mj=limits["max_energy_mj"],
    )


def front_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Target -> the rows of its front, as in `front.csv`."""
    return {target: [front_row(point, run) for point in points] for target, points in fronts(run).items()}


def show_front(run: Run, target: str, rows: list[dict[str, Any]]) -> None:
    """Print one target's front as a table that says what is measured and what is modelled."""
    about = run.info["targets"][target]
    title = (
        f"{run.info['provenance'].get('model', run.path)} on {target} ({about['title']}): latency modelled "
        f"{Trust.from_json(about)}, ms per batch of {about['batch']}; {run.metric.noun} measured"
    )
    if run.metric.direction == "minimize" or not run.metric.is_fraction:
        title += f", {run.metric.direction}d, a point of drop is {run.metric.drop_formula}"
    columns = (
        "id", "origin", "MB", "vs FP32", "ms", "vs FP32", run.metric.noun, "drop, points", "95 %", "held out",
        "fallbacks",
    )  # fmt: skip
    table(title, columns, [_cells(row, run.metric) for row in rows], left=2)


def show_deployments(run: Run) -> None:
    """Print what exported artifacts measured in their runtimes beside what was modelled and simulated."""
    rows, metric = [], run.metric
    for found in run.history.deployments:
        modelled = found.modelled_ms
        times = ("unknown", "") if modelled is None else (milliseconds(modelled), f"{found.latency_ms / modelled:.2f}x")
        measured = found.measurement
        rows.append((
            found.config, found.target, found.format, str(found.batch), times[0], milliseconds(found.latency_ms),
            times[1], measured.split, metric.shown(found.simulated), metric.shown(found.accuracy),
            metric.points(measured.drop_points), megabytes(found.initializer_bytes), "yes" if found.passed else "NO",
        ))  # fmt: skip
    columns = (
        "id", "target", "format", "batch", "ms modelled", "ms measured", "ratio", "split", f"{metric.noun} simulated",
        "in the artifact", "drop, points", "MB", "passed",
    )  # fmt: skip
    table("artifacts that were run (haq verify --record)", columns, rows, left=3)
    for where in dict.fromkeys(f"{found.runtime} on {found.machine}" for found in run.history.deployments):
        echo(f"measured by {where}; a model of another device says nothing about that machine")


def _cells(row: Mapping[str, Any], metric: MainMetric) -> tuple[str, ...]:
    interval = (
        f"{metric.points(row['drop_low'])} to {metric.points(row['drop_high'])}" if "drop_low" in row else "unknown"
    )
    held_out = metric.points(row["validation_drop_points"]) if "validation_drop_points" in row else "not measured"
    return (
        row["id"],
        row["origin"],
        megabytes(row["size_bytes"]),
        f"{row['size_change_percent']:+.1f} %",
        milliseconds(row["latency_ms"]),
        f"{row['latency_change_percent']:+.1f} %",
        metric.shown(row["accuracy"]),
        metric.points(row["drop_points"]),
        interval,
        held_out,
        str(row["fallbacks"]),
    )


def _only_target(run: Run, target: str | None) -> str:
    if target is not None:
        return lookup({name: name for name in run.targets}, target, "target of this run", where=str(run.path))
    if len(run.targets) > 1:
        raise InputError(
            "the run has several targets", where=str(run.path), expected=f"--target, one of {', '.join(run.targets)}"
        )
    return run.targets[0]


COMMANDS = (front, pick_command, report)
