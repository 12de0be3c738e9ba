"""Adds rows to a results file as they come, so that a stopped run keeps what it has."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def append(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows at the end of the file, under a header where it is new, and print what they hold."""
    file.parent.mkdir(exist_ok=True)
    is_new = not file.is_file()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            print({key: value for key, value in row.items() if value != ""}, flush=True)
            writer.writerow(row)
