"""`haq validate`: whether a file is a config of haq, one line per fault."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from haq.cli.show import echo, echo_json, json_option
from haq.configcheck import config_faults
from haq.configschema import SCHEMA, json_schema
from haq.errors import InputError


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--schema", is_flag=True, help=f"Print the JSON Schema of {SCHEMA} instead.")
@json_option
def validate(file: Path | None, *, schema: bool, as_json: bool) -> None:
    """Check that FILE is a haq.config/v1 file whose parts agree, its parameters file included; one line per fault."""
    if schema:
        echo_json(json_schema())
        return
    if file is None:
        raise InputError("no file to validate", expected="haq validate FILE, or --schema")
    faults = config_faults(file)
    if as_json:
        echo_json({"file": str(file), "schema": SCHEMA, "faults": [asdict(fault) for fault in faults]})
    else:
        for fault in faults:
            echo(str(fault))
    if faults:
        raise InputError(
            f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", where=str(file), expected=f"a {SCHEMA} file"
        )
    if not as_json:
        echo(f"{file}: valid {SCHEMA}")


COMMANDS = (validate,)
