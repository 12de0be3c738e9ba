"""`haq search` and `haq resume`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haq.api import resume, search_spec
from haq.cli.options import search_options, spec_tables
from haq.cli.progress import shown_progress
from haq.cli.results import front_rows, show_front
from haq.cli.show import echo, echo_json, json_option
from haq.errors import InputError
from haq.rundir import RUN_FILE, Run
from haq.spec import load_spec


@click.command(name="search")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@search_options
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The run directory.")
@json_option
def search_command(spec: Path | None, out: Path, *, as_json: bool, **flags: Any) -> None:
    """Find the front of a network on one or more targets, from a SPEC.toml, flags, or both (flags win).

    The same command on the same --out goes on with the search, also after Ctrl-C; more --trials prolong it.
    """
    tables = spec_tables(flags)
    if spec is None and not (tables.get("scope") and tables.get("hardware")):
        raise InputError("say what to search, and on what", expected="SPEC.toml, or --space and --target")
    resolved = load_spec(spec, tables)
    try:
        with shown_progress() as progress:
            run = search_spec(resolved, out, progress)
    except KeyboardInterrupt:
        if (out / RUN_FILE).is_file():
            click.echo(f"to go on: the same command again, or haq resume {out}", err=True)
        raise
    _show(run, as_json=as_json)


@click.command(name="resume")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--space", help="Again, if the run searched your own space.")
@click.option("--model", help="Again, if the run searched your own model.")
@click.option("--metric", help="Again, if the run was driven by your own metric.")
@click.option("--weights", help="Again, if the run was given weights.")
@click.option("--data", help="Again, if the run was given data.")
@json_option
def resume_command(directory: Path, *, as_json: bool, **given: str | None) -> None:
    """Go on where a stopped search ended. Built-in spaces need nothing else; hashes of your own files are checked."""
    with shown_progress() as progress:
        run = resume(directory, {key: value for key, value in given.items() if value is not None}, progress)
    _show(run, as_json=as_json)


def _show(run: Run, *, as_json: bool) -> None:
    rows = front_rows(run)
    if as_json:
        echo_json({"out": str(run.path), "targets": run.info["targets"], "fronts": rows})
        return
    for target, found in rows.items():
        show_front(run, target, found)
    echo(f"wrote {run.path}: run.json, history.jsonl, front.csv, front.png, brief.txt, configs/")


COMMANDS = (search_command, resume_command)
