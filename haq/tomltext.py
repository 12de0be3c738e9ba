"""Values as haq writes them into a TOML document: a figure on one line, a row of a list on one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tomlkit
from tomlkit.items import Array, InlineTable


def inline(values: Mapping[str, Any]) -> InlineTable:
    """A table on one line."""
    made = tomlkit.inline_table()
    made.update(values)
    return made


def lines(rows: Iterable[Any]) -> Array:
    """A list with each entry on a line of its own; an entry that is a sequence becomes a list."""
    made = tomlkit.array()
    for row in rows:
        made.add_line(list(row) if isinstance(row, tuple) else row)
    made.add_line(indent="")
    return made
