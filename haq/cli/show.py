"""How results look in a terminal: JSON, tables and numbers with their units."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def echo_json(value: Any) -> None:
    """Print a value as JSON; not-a-number never leaves as one."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def echo(text: str) -> None:
    """Print a line as it is, whatever the width of the terminal."""
    click.echo(text)


def line_width() -> int:
    """How many columns a table may take: the terminal's, or the wide lines of a file."""
    console = Console()
    return console.width if console.is_terminal else FILE_WIDTH


def paragraph(text: str) -> None:
    """Print a text that is indented and wrapped in a terminal; a file gets one line."""
    if not Console().is_terminal:
        click.echo(f"  {text}")
        return
    lines = textwrap.wrap(text, min(line_width(), 100) - 4, break_on_hyphens=False, break_long_words=False)
    click.echo(textwrap.indent("\n".join(lines), "    ").removeprefix("  "))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a title line and a table; its first `left` columns are text, the others numbers. A file gets wide lines."""
    console = Console(highlight=False, width=line_width())
    if title:
        click.echo(title)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        shown.add_column(Text(column), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)


def megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.2f}"


def milliseconds(latency_ms: float) -> str:
    return f"{latency_ms:.4g}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def change(value: float, baseline: float) -> str:
    """How far the value is from the baseline: `-74.6 %`."""
    return f"{100 * (value / baseline - 1):+.1f} %" if baseline else ""
