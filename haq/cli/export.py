"""`haq export`: write a config's network in the format of a runtime, and say what was lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.show import echo, echo_json, json_option, table
from haq.exporting import export

if TYPE_CHECKING:  # exporting loads torch
    from haq.export.report import ExportReport

SOURCES = ("space", "model", "weights", "data")
"""Flags that say where the network and its data come from."""


@click.command(name="export")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--format", "-f", "format_", required=True, help="json, onnx-qdq, ...")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--flavour", help="For whom: of onnx-qdq cpu or tensorrt. [cpu]")
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--data", help="Again, if the search was given data.")
@click.option("--ladder/--no-ladder", default=True, help="Whether its config gets steps to recover by. [ladder]")
@json_option
def export_command(config: Path, format_: str, out: Path, *, ladder: bool, as_json: bool, **flags: str | None) -> None:
    """Write the network of CONFIG, quantized as it says, for the runtime that will execute it.

    Ends with a loss report: per layer what was asked, what the format can hold, and what was written.
    """
    asked = {key: value for key, value in flags.items() if value is not None}
    sources = {key: asked.pop(key) for key in SOURCES if key in asked}
    report = export(config, format_, out, sources, asked, ladder=ladder)
    if as_json:
        echo_json(report.to_json())
        return
    _show(report)


def _show(report: ExportReport) -> None:
    total, losses = len(report.layers), report.losses
    if losses:
        rows = [(line.layer, str(line.asked), _written(line.written), line.note) for line in losses]
        table(
            f"{len(losses)} of {total} layers are not quite as asked",
            ("layer", "asked", "written", "why"),
            rows,
            left=4,
        )
    else:
        echo(f"all {total} layers are as asked")
    for note in report.notes:
        echo(f"note: {note}")
    for file in report.files:
        echo(f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB)")


def _written(precision: Any) -> str:
    return "not in the file" if precision is None else str(precision)


COMMANDS = (export_command,)
