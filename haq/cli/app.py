"""The command group, and the one place where an error turns into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from haq.cli import (
    calibrate,
    check,
    compare,
    diagnose,
    estimate,
    export,
    finetune,
    listing,
    measure,
    recover,
    results,
    run,
    validate,
    verify,
)
from haq.cli.process import keep_freed_memory, let_waiting_threads_sleep
from haq.errors import HaqError

INTERRUPTED = 130
"""What a shell reports for a process that Ctrl-C ended (128 + SIGINT)."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="haq", message="haq %(version)s")
def cli() -> None:
    """Find the mixed-precision assignments of a trained network that nobody can beat on your hardware.

    Start with `haq targets` and `haq spaces`, price one assignment with `haq estimate`, search with `haq search`.

    Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 the limits cannot be met, 130 interrupted.
    """


for _command in (
    *listing.COMMANDS,
    *estimate.COMMANDS,
    *run.COMMANDS,
    *results.COMMANDS,
    *compare.COMMANDS,
    *finetune.COMMANDS,
    *export.COMMANDS,
    *calibrate.COMMANDS,
    *measure.COMMANDS,
    *validate.COMMANDS,
    *check.COMMANDS,
    *verify.COMMANDS,
    *diagnose.COMMANDS,
    *recover.COMMANDS,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (the console script hands it to sys.exit)."""
    let_waiting_threads_sleep()
    keep_freed_memory()
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="haq", standalone_mode=False)
    except HaqError as error:
        click.echo(f"haq: {error}", err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "haq"
        click.echo(f"haq: {' '.join(error.format_message().split())}; see {command} --help", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("haq: interrupted; finished work is kept", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`haq front DIR | head`); without this the flush at exit would fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
