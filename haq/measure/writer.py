"""Writes a measured profile: a TOML file, and the table of kernels beside it that the TOML names by its hash."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit

from haq.errors import InputError
from haq.hardware.figures import rounded
from haq.hardware.lookup import table_text
from haq.measure.measure import Measured
from haq.textfile import check_writable, write_file
from haq.tomltext import inline, lines

HEAD = (
    "{title}: measured by `haq measure` on {day}.",
    "{kernels} comparisons of chains of kernels, each the median of repeats in rounds. The rates are fitted to them,",
    "and the table beside this file, which `lookup` names, corrects what the fit leaves. Both are of the machine that",
    "they were measured on, wherever they are read.",
)


def write_profile(out: Path, measured: Measured, day: datetime.date) -> Path:
    """Write the profile and its table, which is returned; raises InputError where either cannot be written."""
    check_out(out)
    table = out.with_suffix(".csv")
    text = table_text(measured.fitted.rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_file(table, text, "table of kernels")
    write_file(out, profile_text(measured, {"table": table.name, "sha256": digest}, day), "profile")
    return table


def check_out(out: Path) -> None:
    """Raise InputError for a path that no profile can be written to, before anything is measured."""
    if out.suffix != ".toml":
        raise InputError("a profile is a TOML file", where="--out", got=str(out), expected="a path that ends in .toml")
    check_writable(out, "--out")


def profile_text(measured: Measured, lookup: Mapping[str, str], day: datetime.date) -> str:
    """The profile as TOML. lookup: the name and the hash of its table."""
    kernels = len(measured.device.cases)
    document = tomlkit.document()
    for line in HEAD:
        document.add(tomlkit.comment(line.format(title=measured.device.title, day=day, kernels=kernels)))
    tables = {**measured.fitted.document, "lookup": dict(lookup), "fits": [_fit(measured, day)]}
    plain = {key: value for key, value in tables.items() if not isinstance(value, dict | list) or _is_figure(value)}
    for key, value in (*plain.items(), *((k, v) for k, v in tables.items() if k not in plain)):
        document.add(key, _item(value))
    return tomlkit.dumps(document)


def _fit(measured: Measured, day: datetime.date) -> dict[str, Any]:
    result = measured.fitted.result
    return {
        "runtime": measured.device.runtime,
        "measurements": f"chains of kernels timed on {day}",
        "error": rounded(float(np.abs(result.errors).mean())),
        "free": [parameter.free.model_dump() for parameter in result.parameters],
        "residuals": [list(residual) for residual in result.residuals],
    }


def _is_figure(value: object) -> bool:
    return isinstance(value, dict) and "unit" in value


def _item(value: Any) -> Any:
    """Figures and rows of free parameters on a line each, everything else in tables."""
    if isinstance(value, dict) and not _is_figure(value):
        table = tomlkit.table()
        for key, inner in value.items():
            table.add(key, _item(inner))
        return table
    if _is_figure(value):
        return inline(value)
    if isinstance(value, list) and value and isinstance(value[0], dict) and "factor" not in value[0]:
        tables = tomlkit.aot()
        for inner in value:
            tables.append(_item(inner))
        return tables
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return lines([inline(inner) if isinstance(inner, dict) else inner for inner in value])
    return value
