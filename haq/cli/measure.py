"""`haq measure`: time this machine's kernels, and write the profile that a search on it takes."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from haq.cli.show import echo, echo_json, json_option, table
from haq.errors import MissingExtra

if TYPE_CHECKING:  # measuring loads ONNX Runtime, and nothing else does
    from haq.measure.measure import Measured
    from haq.measure.measure import Progress as Report


TOO_BUSY = 0.05
"""The share of the cores that other programs may take before a measurement is worth little."""


@click.command()
@click.option("--device", default="cpu", show_default=True, help="What to measure: cpu or cuda.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The profile to write, a TOML file.")
@click.option("--threads", type=int, help="Threads of one inference. [all that this process may use]")
@click.option("--seconds", type=float, default=120.0, show_default=True, help="About how long it may take.")
@json_option
def measure(device: str, out: Path, threads: int | None, seconds: float, *, as_json: bool) -> None:
    """Time the kernels of this machine and write it as a target: a profile, and a table of kernels beside it.

    `haq search --target OUT` then searches for the machine in front of you. Leave it alone meanwhile: whatever else
    runs is measured too, and shows as noise.
    """
    try:
        from haq.measure.measure import measure as run
        from haq.measure.measure import open_device
        from haq.measure.writer import check_out, write_profile
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "onnxruntime", "onnx") from None
    check_out(out)
    opened = open_device(device, threads)
    with _shown(opened.title) as report:
        found = run(opened, seconds, report)
    rows = write_profile(out, found, datetime.date.today())
    if as_json:
        echo_json(
            {
                "profile": str(out),
                "table": str(rows),
                "device": opened.title,
                "runtime": opened.runtime,
                "benches": len(found.timings),
                "noise": float(np.median([timing.noise for timing in found.timings.values()])),
                **({} if found.others is None else {"others": found.others}),
                "error": float(np.abs(found.fitted.result.errors).mean()),
                "classes": list(_classes(found)),
            }
        )
        return
    _show(found)
    if found.others is not None and found.others > TOO_BUSY:
        echo(
            f"other programs took {100 * found.others:.0f} % of the cores meanwhile, so these latencies are too long; "
            "measure again when nothing else runs"
        )
    echo(f"written: {out} and {rows}; search for it with --target {out}")


@contextmanager
def _shown(title: str) -> Iterator[Report]:
    """What a measurement reports to: a bar in a terminal, nothing in a log."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"timing {title}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _classes(found: Measured) -> Iterator[dict[str, Any]]:
    """By class of kernel and what it computes in: how many kernels, the fitted rates, and what is left to the table.

    misfit: median absolute error of the plain model on single kernels. noise: median of the comparisons'.
    """
    document = found.fitted.document
    grouped: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in found.fitted.rows:
        op_class, _, _, computes_in = row.likeness.group
        ratio = row.modelled_us / row.measured_us
        grouped.setdefault((op_class, computes_in), []).append((abs(ratio - 1), row.noise))
    for (op_class, computes_in), errors in grouped.items():
        shares = document["efficiency"]
        share = shares.get(f"{op_class}/{computes_in}", shares.get(op_class))
        peak = document["arithmetic"].get(computes_in)
        found_of: dict[str, Any] = {"class": op_class, "computes_in": computes_in, "kernels": len(errors)}
        if share and peak:
            found_of["gops"] = share["value"] * peak["peak"]["value"]
        found_of["overhead_us"] = document["overhead"]["kernel"][op_class]["value"]
        found_of["misfit"] = float(np.median([error for error, _ in errors]))
        found_of["noise"] = float(np.median([noise for _, noise in errors]))
        yield found_of


def _show(found: Measured) -> None:
    rows: list[Sequence[str]] = []
    for row in _classes(found):
        rows.append(
            (
                row["class"],
                row["computes_in"],
                str(row["kernels"]),
                f"{row['gops']:.4g}" if "gops" in row else "",
                f"{row['overhead_us']:.3g}",
                f"{100 * row['misfit']:.1f} %",
                f"{100 * row['noise']:.1f} %",
            )
        )
    columns = ("class", "computes in", "kernels", "GOP/s", "us per kernel", "error of the fit", "noise")
    table(f"{found.device.title}, {found.device.runtime}", columns, rows, left=2)
    memory: Mapping[str, Any] = found.fitted.document
    echo(
        f"weights from memory: {memory['memory']['bandwidth']['value']:.4g} GB/s; "
        f"chains of kernels, fitted: mean error {100 * np.abs(found.fitted.result.errors).mean():.1f} %"
    )


COMMANDS = (measure,)
