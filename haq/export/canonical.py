"""Writes the canonical config, `haq.config/v1` JSON, with all its numbers as safetensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from haq.configfile import write_config
from haq.errors import InputError
from haq.export.report import ExportReport, LayerWritten
from haq.nn.exportable import Exportable
from haq.nn.tuned import write_tuned


def export(what: Exportable, where: Path, options: Mapping[str, str]) -> ExportReport:
    """The config at `where`, a .json file, and its numbers: loaded again they need no calibration.

    Nothing is lost: every format and number that haq knows has its place. Raises InputError on another ending.
    """
    if where.suffix != ".json":
        raise InputError("not where a config can go", where="--out", got=str(where), expected="a .json file")
    numbers = where.with_suffix(".safetensors")
    sha256 = write_tuned(numbers, what.numbers)
    write_config(where, {**what.config, "parameters": numbers.name, "parameters_sha256": sha256})
    layers = tuple(LayerWritten(name, p, p) for name in what.executed for p in (what.executed.precision(name),))
    return ExportReport("json", (where, numbers), layers)
