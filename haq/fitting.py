"""Fits a profile file to a table of measured latencies, and judges the fit on models that it did not see."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from haq.deployed import shipped_rows
from haq.errors import InputError
from haq.hardware.calibrate import FitResult, fit, predict
from haq.hardware.calibration import Fit
from haq.hardware.ledger import Observation
from haq.hardware.legalize import legalize
from haq.hardware.measurements import Measurement, read_measurements
from haq.hardware.profile import FOLDER, HardwareProfile, build_profile, split_target
from haq.precision import Assignment, Precision
from haq.pricing import read_assignment
from haq.resources import find_toml
from haq.rundir import HISTORY_FILE
from haq.spacefile import load_space, with_size
from haq.tracecache import workload_of
from haq.validation import load_toml
from haq.workload import Workload

SPREAD_SHARE = 0.8
"""`latency_spread` is the error that this share of the rows of unseen models stays within."""


@dataclass(frozen=True)
class Calibration:
    """A profile's fits, in the profile's order, and what they predict for models that they did not see.

    unseen: row id -> relative error of the latency predicted without any row of that model; empty with one model only.
    It covers the profile's own fits; those of an option stand apart.
    """

    profile: str
    path: Path
    measurements: Path
    sha256: str
    fits: tuple[Fit, ...]
    results: tuple[FitResult, ...]
    unseen: Mapping[str, float]

    @property
    def spread(self) -> float | None:
        """The error that four of five rows of unseen models stay within; None with one model only."""
        return float(np.quantile(np.abs(list(self.unseen.values())), SPREAD_SHARE)) if self.unseen else None


def calibrate(name_or_path: str, measurements: Path) -> Calibration:
    """Fit every [[fits]] table of a profile to the rows of its runtime; nothing is written.

    measurements: a CSV, or a run directory, whose deployments are the rows.

    All free parameters start from their priors, and each fit then sees what the fits before it found, so the outcome
    depends on the profile's own figures only where they are not free. Raises InputError where the profile has no
    [[fits]], a runtime has no row, or a row does not fit the profile.
    """
    base, options = split_target(name_or_path)
    if options:
        raise InputError("an option cannot be calibrated alone", got=name_or_path, expected=f"the profile {base!r}")
    path = find_toml(FOLDER, base, "target")
    raw = {"name": path.stem, **load_toml(path)}
    fits = build_profile(raw, (), str(path)).fits
    if not fits:
        raise InputError(
            "the profile says nothing about what is free",
            where=str(path),
            expected="tables [[fits]] with runtime and free",
        )
    is_run = measurements.is_dir()
    folder = measurements if is_run else measurements.parent
    every = shipped_rows(measurements) if is_run else read_measurements(measurements)
    rows = [row for row in every if split_target(row.target)[0] in (base, path.stem)]
    for one in fits:
        if not any(row.runtime == one.runtime for row in rows):
            known = ", ".join(sorted({row.runtime for row in rows})) or f"none for target {base!r}"
            raise InputError(
                "no measurement of this runtime", where=str(measurements), got=one.runtime, expected=f"one of {known}"
            )
    _, results = fitted(raw, fits, rows, folder)
    unseen = leave_one_model_out(raw, [one for one in fits if not one.option], rows, folder)
    digest = hashlib.sha256((measurements / HISTORY_FILE if is_run else measurements).read_bytes()).hexdigest()
    return Calibration(path.stem, path, measurements, digest, fits, results, unseen)


def fitted(
    raw: Mapping[str, Any], fits: Sequence[Fit], rows: Sequence[Measurement], folder: Path
) -> tuple[dict[str, Any], tuple[FitResult, ...]]:
    """The profile's document after the fits, one after the other, and what each that has a row found.

    raw: the profile's document, left as it is. A fit sees what those before it found; one without a row stays at its
    priors.
    """
    document, results = at_priors(raw, fits), []
    for one in fits:
        mine = [row for row in rows if row.runtime == one.runtime]
        if mine:
            results.append(fit(one.free, observe(document, mine, folder)))
            document = with_values(document, one.option, results[-1].values)
    return document, tuple(results)


def leave_one_model_out(
    raw: Mapping[str, Any], fits: Sequence[Fit], rows: Sequence[Measurement], folder: Path
) -> dict[str, float]:
    """Row id -> relative error, each predicted by fits without any row of its model; empty with a single model.

    Rows of runtimes that none of the fits is for are left out. A fit that is left without rows stays at its priors: so
    the error from one family of networks to another shows.
    """
    rows = [row for row in rows if any(row.runtime == one.runtime for one in fits)]
    models = dict.fromkeys(row.space for row in rows)
    errors: dict[str, float] = {}
    for model in models if len(models) > 1 else ():
        held = [row for row in rows if row.space == model]
        document, _ = fitted(raw, fits, [row for row in rows if row.space != model], folder)
        errors |= errors_of(document, held, folder)
    return {row.id: errors[row.id] for row in rows if row.id in errors}


def errors_of(document: Mapping[str, Any], rows: Sequence[Measurement], folder: Path) -> dict[str, float]:
    """Row id -> modelled over measured latency, less one."""
    seen = observe(document, rows, folder)
    seconds = predict({}, seen)
    return {row.id: seconds[row.id] / row.latency_s - 1 for row in seen}


def observe(document: Mapping[str, Any], rows: Sequence[Measurement], folder: Path) -> tuple[Observation, ...]:
    """The rows as observations, each on the document's profile with the row's options, legalized there."""
    profiles: dict[tuple[str, ...], HardwareProfile] = {}
    found = []
    for row in rows:
        options = split_target(row.target)[1]
        if options not in profiles:
            profiles[options] = build_profile(document, options, str(document["name"]))
        profile, workload = profiles[options], _workload(row.space, row.input)
        executed = legalize(workload, _asked(row, workload, folder), profile).executed
        found.append(Observation(row.id, row.space, profile, workload, executed, row.batch, row.latency_ms / 1e3))
    return tuple(found)


def at_priors(raw: Mapping[str, Any], fits: Sequence[Fit]) -> dict[str, Any]:
    """The document with every free figure at its prior."""
    document = dict(raw)
    for one in fits:
        document = with_values(document, one.option, {key: free.prior for free in one.free for key in free.keys})
    return document


def with_values(document: Mapping[str, Any], option: str, values: Mapping[str, float]) -> dict[str, Any]:
    """The document with the figures at these keys, of the profile or of an option, set to other values."""
    changed = dict(document)
    for key, value in values.items():
        changed = _set(changed, figure_path(option, key), value)
    return changed


def figure_path(option: str, key: str) -> tuple[str, ...]:
    """Where a figure's table is in the document: `overhead.kernel.conv` -> its three names, an option's before them."""
    names = tuple(key.split("."))
    return ("options", option, *names) if option else names


def _set(table: Mapping[str, Any], names: tuple[str, ...], value: float) -> dict[str, Any]:
    head, rest = names[0], names[1:]
    if head not in table:
        raise InputError("a free figure is not in the profile", got=".".join(names), expected="a figure to start from")
    return {**table, head: _set(table[head], rest, value) if rest else {**table[head], "value": value}}


@cache
def _workload(space: str, size: str) -> Workload:
    """Once per process: a table has many rows of few networks."""
    found = load_space(space)
    return workload_of(with_size(found, size) if size else found)


def _asked(row: Measurement, workload: Workload, folder: Path) -> Assignment:
    if row.precision.endswith(".json"):
        return read_assignment(folder / row.precision, workload)
    choice = int(row.precision) if row.precision.isdigit() else Precision.parse(row.precision)
    return Assignment.uniform(workload.layer_names, choice)
