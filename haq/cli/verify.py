"""`haq verify`: run an exported artifact in its real runtime, and let it through or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haq.cli.show import echo, echo_json, json_option, table
from haq.errors import CheckFailed, InputError
from haq.verifying import DEFAULT_FORMAT, Asked, Verified, record, verify

SOURCES = ("space", "model", "weights", "data")
"""Flags that say where the network and its data come from."""

_LIMITS = (
    ("max_accuracy_gap", "accuracy_gap_points"), ("min_agreement", "agreement"), ("max_latency_ms", "latency_ms"),
)  # fmt: skip


@click.command(name="verify")
@click.argument("subject", metavar="CONFIG|ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--artifact", type=click.Path(path_type=Path), help="The artifact of CONFIG. [exported to a temporary file]"
)
@click.option("--format", "fmt", default=DEFAULT_FORMAT, show_default=True, help="What CONFIG is exported to.")
@click.option("--split", type=click.Choice(["search", "validation"]), default="search", show_default=True,
              help="The samples that accuracy is compared on.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), help="Only so many of them. [all]")
@click.option("--repeats", type=click.IntRange(min=1), default=30, show_default=True, help="Timed inferences.")
@click.option("--max-accuracy-gap", type=float, metavar="POINTS", help="From the simulation, either way. [0.3]")
@click.option("--min-agreement", type=float, metavar="FRACTION", help="Answers that are the simulation's. [0.99]")
@click.option("--max-size-gap", type=float, metavar="PERCENT", help="Stored numbers against the promised size. [3]")
@click.option("--max-latency-ms", type=float, help="Median latency per batch on this machine. [no limit]")
@click.option("--record", "run", type=click.Path(path_type=Path), help="Append the measurements to this run directory.")
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--data", help="Again, if the search was given data.")
@json_option
def verify_command(subject: Path, run: Path | None, fmt: str, *, as_json: bool, **flags: Any) -> None:
    """Run an artifact beside the simulation and judge it: size, answers, latency, and each layer's real precision.

    The argument is a config, which is exported first unless --artifact says where that was done, or an artifact that
    holds its config. Exit code 1 when a limit does not hold.
    """
    from haq.verify.gate import Limits

    given = {key: flags[key] for key in SOURCES if flags[key] is not None}
    said = {name: flags[flag] for flag, name in _LIMITS if flags[flag] is not None}
    if flags["max_size_gap"] is not None:
        said["size_gap"] = flags["max_size_gap"] / 100
    if negative := [name for name, value in said.items() if not value >= 0]:
        raise InputError("a limit below zero", got=f"{negative[0]} {said[negative[0]]}", expected="0 or more")
    asked = Asked(subject, flags["artifact"], fmt, flags["split"], flags["samples"], flags["repeats"])
    found = verify(asked, given, Limits(**said))
    recorded = run is not None and found.evidence is not None
    if run is not None and recorded:
        record(found, run)
    if as_json:
        echo_json({**found.to_json(), "recorded": recorded})
    else:
        _show(found)
        if recorded:
            echo(f"recorded in {run}")
    if not found.gate.passed:
        faults = found.gate.faults
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckFailed(f"the gate is closed: {faults[0]}{more}")


def _show(found: Verified) -> None:
    config = found.config
    title = f"{config['id']} of {config['model']['model']} for {config['target']['name']} as {found.format}"
    verdicts = {True: "pass", False: "FAIL", None: ""}
    rows = [(line.check, line.measured, line.against, line.limit, verdicts[line.passed]) for line in found.gate.lines]
    table(title, ("check", "measured", "against", "limit", "verdict"), rows, left=5)
    for note in found.gate.notes:
        echo(note)
    for fault in found.gate.faults:
        echo(f"FAIL {fault}")
    if found.gate.passed:
        echo("the gate is open")


COMMANDS = (verify_command,)
