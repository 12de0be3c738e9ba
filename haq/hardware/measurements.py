"""Reads a table of measured latencies, one CSV row each, and refuses what cannot be a measurement."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from haq.errors import InputError
from haq.hardware.figures import Strict
from haq.precision import BIT_WIDTHS, Precision
from haq.validation import validate

COLUMNS = ("id", "target", "runtime", "space", "input", "batch", "precision", "latency_ms", "source", "note")

LatencyMs = Annotated[float, Field(gt=0, lt=1e7)]


class Measurement(Strict):
    """One measured latency of a whole network.

    target: the profile it is a row of, with options (`a100:80gb`). space, input: the network and, unless empty, another
    input (`3x224x224`, or a number of tokens). precision: of every layer, as bits (`8`) or formats (`int8/int16`), or
    the name of a JSON file of layer: bits beside the table. latency_ms: per batch.
    """

    id: str = Field(min_length=1)
    target: str = Field(min_length=1)
    runtime: str = Field(min_length=1)
    space: str = Field(min_length=1)
    input: str = ""
    batch: int = Field(ge=1)
    precision: str = Field(min_length=1)
    latency_ms: LatencyMs
    source: str = Field(min_length=8)
    note: str = ""

    @field_validator("precision")
    @classmethod
    def _is_bits_formats_or_a_file(cls, text: str) -> str:
        if text.endswith(".json"):
            return text
        if text.isdigit():
            if int(text) not in BIT_WIDTHS:
                raise ValueError("4, 8, 16 or 32 bits")
            return text
        try:
            return str(Precision.parse(text))
        except InputError as error:
            raise ValueError(f"bits, weight/activation formats or a .json file ({error})") from error


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """The rows of a CSV with the columns COLUMNS; `input` and `note` may be left out.

    Raises InputError naming file, line, column, got and expected: missing columns, an empty or negative time, a
    precision that is none, an id that occurs twice, no row at all.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read the measurements", where=str(path), got=str(error), expected="a CSV") from error
    _check_columns(tuple(reader.fieldnames or ()), path)
    rows: list[Measurement] = []
    seen: dict[str, int] = {}
    for raw in reader:
        where = f"{path}, line {reader.line_num}"
        if None in raw or None in raw.values():
            raise InputError("not as many fields as columns", where=where, expected=f"{len(reader.fieldnames or ())}")
        row = validate(Measurement, {key: value.strip() for key, value in raw.items()}, where)
        if row.id in seen:
            raise InputError("the id occurs twice", where=where, got=row.id, way_out=f"see line {seen[row.id]}")
        seen[row.id] = reader.line_num
        rows.append(row)
    if not rows:
        raise InputError("no measurement in the table", where=str(path), expected="at least one row")
    return tuple(rows)


def _check_columns(found: Sequence[str], path: Path) -> None:
    optional = ("input", "note")
    missing = [name for name in COLUMNS if name not in found and name not in optional]
    unknown = [name for name in found if name not in COLUMNS]
    if missing or unknown:
        raise InputError(
            f"column {(missing or unknown)[0]!r} is {'missing' if missing else 'unknown'}", where=str(path),
            got=", ".join(found), expected=", ".join(COLUMNS),
        )  # fmt: skip
