"""`haq compare-targets`: each target's best assignment, priced on every other target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from haq.api import regret_by_cost, regret_of_run
from haq.cli.show import echo, echo_json, json_option, table
from haq.constraints import Constraints
from haq.errors import InputError
from haq.front import MINIMIZE
from haq.hardware.profile import load_profile
from haq.regret import Cell, Choice, RegretMatrix
from haq.rundir import read_run
from haq.trust import Trust

_ONLY_RUN = {"max_drop": "--max-drop", "model": "--model"}
_ONLY_COST = {"target": "--target", "batch": "--batch", "max_size_mb": "--max-size-mb"}

_UNITS = {"latency_ms": ("ms", 1.0), "size_bytes": ("MB", 1e-6), "energy_mj": ("mJ", 1.0)}
"""Figure -> the unit that it is shown in, and the factor to it."""


@dataclass(frozen=True)
class _Compared:
    """All that is shown. allowed_points: the largest drop that was asked for, where one was.

    has_accuracy: whether a run stands behind it.
    """

    matrix: RegretMatrix
    trusts: dict[str, Trust]
    note: str
    has_accuracy: bool
    allowed_points: float | None = None


@click.command(name="compare-targets")
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--space", "-s", help="Without a run: the search space. With one: again, if it searched your own.")
@click.option("--model", help="Again, if the run searched your own model.")
@click.option("--target", "-t", multiple=True, help="Without a run: two or more targets.")
@click.option("--batch", "-b", type=click.IntRange(min=1), help="Without a run: samples per inference. [1]")
@click.option("--max-size-mb", type=float, help="Without a run: largest size of the weights.")
@click.option("--max-drop", type=float, metavar="POINTS", help="With a run: largest accuracy drop; 1 is one point.")
@click.option("--minimize", type=click.Choice(list(MINIMIZE)), default="latency", show_default=True)
@json_option
def compare_targets(directory: Path | None, minimize: str, *, as_json: bool, **given: Any) -> None:
    """Print what each target's best assignment costs on every other target: the regret of tuning for the wrong one.

    With the DIR of a run, best means the point that `haq pick` takes, and the accuracy of what each target executes is
    shown where it was measured. Without one, --space and two or more --target compare by the cost model alone.
    """
    for key, flag in (_ONLY_RUN if directory is None else _ONLY_COST).items():
        if given[key] not in (None, ()):
            where = "without a run directory" if directory is None else "with a run directory"
            raise InputError(f"{flag} has no meaning {where}", got=given[key], expected=f"no {flag}")
    found = _by_cost(minimize, given) if directory is None else _of_run(directory, minimize, given)
    if as_json:
        echo_json(_json(found))
    else:
        _show(found)


def _of_run(directory: Path, minimize: str, given: Mapping[str, Any]) -> _Compared:
    run = read_run(directory)
    _check_several(run.targets, str(directory), "a run on several targets")
    again = {key: given[key] for key in ("space", "model") if given[key] is not None}
    limits = Constraints(max_drop_points=given["max_drop"])
    matrix, note = regret_of_run(run, limits, minimize, again)
    trusts = {target: Trust.from_json(run.info["targets"][target]) for target in run.targets}
    asked = run.info["spec"].get("accuracy", {}).get("max_drop_points")
    return _Compared(matrix, trusts, note, True, asked if limits.max_drop_points is None else limits.max_drop_points)


def _by_cost(minimize: str, given: Mapping[str, Any]) -> _Compared:
    if given["space"] is None:
        raise InputError("say what to compare", expected="the DIR of a run, or --space and two or more --target")
    profiles = {profile.name: profile for profile in map(load_profile, given["target"])}
    _check_several(tuple(profiles), "--target", "two or more different targets")
    limit = given["max_size_mb"]
    matrix = regret_by_cost(
        given["space"], given["target"], minimize,
        batch=given["batch"] or 1, max_size_bytes=None if limit is None else 1e6 * limit,
    )  # fmt: skip
    note = "by the cost model alone: accuracy is not in it, and the best of a target may have lost all of it"
    return _Compared(matrix, {name: Trust.of(profile) for name, profile in profiles.items()}, note, False)


def _check_several(targets: Sequence[str], where: str, expected: str) -> None:
    if len(targets) < 2:
        raise InputError(
            "one target has nothing to be compared with", where=where, got=", ".join(targets) or "none",
            expected=expected,
        )  # fmt: skip


def _json(found: _Compared) -> dict[str, Any]:
    raw = {"targets": {target: trust.to_json() for target, trust in found.trusts.items()}, **found.matrix.to_json()}
    allowed = {} if found.allowed_points is None else {"max_drop_points": found.allowed_points}
    return {**raw, **allowed, **({"note": found.note} if found.note else {})}


def _show(found: _Compared) -> None:
    """One row per choice; each cell on lines of its own: the figure, the regret, and the drop."""
    matrix = found.matrix
    targets = [choice.target for choice in matrix.choices]
    rows = [
        (_named(choice), *(_text(cell, found) for cell in row))
        for choice, row in zip(matrix.choices, matrix.cells, strict=True)
    ]
    apart = [tuple(f"\n{cell}" for cell in row) if index else row for index, row in enumerate(rows)]
    what = matrix.figure.rpartition("_")[0]
    title = f"{what} of each target's best assignment on every target; in percent against the best of that target"
    table(title, ("best of", *(f"on {target}" for target in targets)), apart, left=1)
    if matrix.figure == "latency_ms":
        echo("latency modelled: " + "; ".join(f"{target} {trust}" for target, trust in found.trusts.items()))
    if found.has_accuracy:
        echo("drop: points under FP32, measured for exactly what runs there")
    if any(cell.regret < 0 for row in matrix.cells for cell in row):
        has = "keep its limits and be measured" if found.has_accuracy else "keep the limit on size there"
        echo(f"below 0 %: cheaper than the target's own best, which has to {has}")
    if found.note:
        echo(found.note)


def _named(choice: Choice) -> str:
    return choice.target if choice.candidate is None else f"{choice.target}\ncandidate {choice.candidate}"


def _text(cell: Cell, found: _Compared) -> str:
    """The figure, the regret, and with accuracy the drop, each on a line."""
    unit, factor = _UNITS[found.matrix.figure]
    lines = [f"{cell.value * factor:.4g} {unit}", f"{100 * cell.regret:+.1f} %" if cell.best_of != cell.on else "best"]
    if found.has_accuracy:
        lines.append("not measured" if cell.drop_points is None else f"drop {cell.drop_points:+.2f}")
    if cell.drop_points is not None and found.allowed_points is not None and cell.drop_points > found.allowed_points:
        lines[-1] += f" > {found.allowed_points:g}"
    return "\n".join(lines)


COMMANDS = (compare_targets,)
