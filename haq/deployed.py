"""Turns what `haq verify --record` measured in a run into rows of measured latencies, which `haq calibrate` takes."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from haq.errors import InputError
from haq.hardware.measurements import COLUMNS, Measurement
from haq.resources import shipped_names
from haq.rundir import DEPLOYED_FOLDER, read_run
from haq.spacefile import FOLDER
from haq.textfile import write_file


def rows_of_run(directory: Path) -> tuple[Measurement, ...]:
    """The latencies of artifacts that passed their gate; assignments are files in the run directory.

    Raises InputError when there is none.
    """
    run = read_run(directory)
    rows = tuple(
        Measurement(
            id=f"{found.config}-{number}",
            target=found.target,
            runtime=found.runtime,
            space=str(run.info["spec"]["scope"]["space"]),
            batch=found.batch,
            precision=f"{DEPLOYED_FOLDER}/{found.config}.json",
            latency_ms=found.latency_ms,
            source=f"haq verify on {found.machine}",
        )
        for number, found in enumerate(run.history.deployments)
        if found.passed
    )
    if not rows:
        raise InputError(
            "no artifact of the run was measured", where=str(directory), expected="haq verify CONFIG --record DIR first"
        )
    return rows


def shipped_rows(directory: Path) -> tuple[Measurement, ...]:
    """The same of a run on a shipped space; raises InputError on another, whose code no run directory may name."""
    rows = rows_of_run(directory)
    if rows[0].space not in shipped_names(FOLDER):
        raise InputError(
            "the run's network came from outside haq", where=str(directory), got=rows[0].space,
            expected="a run on a shipped space", way_out="haq report DIR --measurements FILE.csv",
        )  # fmt: skip
    return rows


def write_rows(directory: Path, out: Path) -> int:
    """Write the rows as a CSV that `haq calibrate` reads; returns how many. Raises InputError as `rows_of_run` does."""
    rows = rows_of_run(directory)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in rows:
        # A table names its assignments from where it lies.
        beside = os.path.relpath(directory / row.precision, out.parent)
        table.writerow({**row.model_dump(), "precision": Path(beside).as_posix()})
    write_file(out, text.getvalue(), "table of measurements")
    return len(rows)
