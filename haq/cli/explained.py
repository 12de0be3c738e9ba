"""How `haq estimate --explain` looks: the slowest parts at every bit-width, then why fewer bits do not help."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from haq.cli.show import echo, line_width, megabytes, paragraph, table
from haq.explain import Cause, LayerExplanation, causes, explain, parts
from haq.precision import BIT_WIDTHS
from haq.pricing import Estimate

PARTS, CAUSES, NAMED, NAMES_WIDTH = 25, 12, 3, 80
"""How many of the slowest parts are shown, how many reasons, how many of the layers that share one, in how much."""

NAME_WIDTH = 20
"""To how little a name may be shortened, so that a row fits the line."""


def explained_json(found: Estimate) -> list[dict[str, Any]]:
    """Every part, slowest first."""
    return parts(found, explain(found))


def show_explained(found: Estimate) -> None:
    """Print the slowest parts as a table and the reasons under it."""
    layers = explain(found)
    rows = parts(found, layers)
    _show_parts(rows, {layer.layer: layer for layer in layers})
    _show_causes(causes(layers))


def _show_parts(rows: Sequence[dict[str, Any]], layers: dict[str, LayerExplanation]) -> None:
    unit, factor = ("us", 1e3) if rows[0]["latency_ms"] < 1 else ("ms", 1.0)
    columns = ("bound by", unit, "share", "MB", *map(str, BIT_WIDTHS))
    cells = []
    for row in rows[:PARTS]:
        layer = layers[row["name"]] if row["kind"] == "layer" else None
        size = megabytes(row["size_bytes"]) if layer else ""
        times = _at(layer, factor) if layer else [""] * len(BIT_WIDTHS)
        share = f"{100 * row['share']:.1f} %"
        cells.append((row["bound"], _time(row["latency_ms"] * factor), share, size, *times))
    # Three columns of blanks and rules stand between two of the table.
    taken = sum(3 + max(map(len, column)) for column in zip(columns, *cells, strict=True))
    names = [shortened(row["name"], max(NAME_WIDTH, line_width() - taken - 2)) for row in rows[:PARTS]]
    some = f"slowest {PARTS} of {len(rows)} parts" if len(rows) > PARTS else "parts, slowest first"
    title = f"{some}; under 4 to 32: {unit} at that width with conversions to neighbours, * what runs"
    table(title, ("part", *columns), [(name, *rest) for name, rest in zip(names, cells, strict=True)], left=2)


def _at(layer: LayerExplanation, factor: float) -> list[str]:
    return [
        _time(width.placed.latency_ms * factor) + ("*" if width.executed == layer.executed else " ")
        for width in layer.widths
    ]


def _show_causes(found: Sequence[Cause]) -> None:
    if not found:
        return
    echo("why fewer bits do not help, most time first:")
    for cause in found[:CAUSES]:
        paragraph(f"{cause.head} ({_layers(cause.layers)}): {cause.text}")
    if len(found) > CAUSES:
        echo(f"  and {len(found) - CAUSES} more, all in --json")


def _layers(names: Sequence[str]) -> str:
    """`conv1`, or `3 layers: a, b, c`, or `21 layers: a, b, c, ...`; fewer where names are long."""
    if len(names) == 1:
        return names[0]
    fit = [n for n in range(1, NAMED + 1) if len(", ".join(names[:n])) <= NAMES_WIDTH]
    shown = names[: max(fit, default=1)]
    more = ", ..." if len(names) > len(shown) else ""
    return f"{len(names)} layers: {', '.join(shown)}{more}"


def shortened(name: str, width: int) -> str:
    """The name, or its last components behind three dots; a conversion says only once what both ends share."""
    source, arrow, consumer = name.partition(" -> ")
    if arrow:
        alike = "".join(takewhile(bool, map(_same, source, consumer)))
        name = source + arrow + consumer[max(alike.rfind("."), alike.rfind("/")) + 1 :]
    if len(name) <= width:
        return name
    for index in range(len(name) - width + 3, len(name)):
        if name[index - 1] in "./":
            return "..." + name[index:]
    return "..." + name[len(name) - width + 3 :]


def _same(a: str, b: str) -> str:
    """The letter, if both are it."""
    return a if a == b else ""


def _time(value: float) -> str:
    """Three digits: 0.0482, 4.82, 12.7, 160."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
