"""`haq finetune`: train a quantized network for a few epochs, where quantization alone loses too much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.progress import duration
from haq.cli.show import echo, echo_json, json_option, percent, table
from haq.finetuning import finetune

if TYPE_CHECKING:  # training loads torch
    from haq.nn.finetune import EpochDone, Started

SOURCES = ("space", "model", "weights", "data", "train_data")
"""Flags that say where the network and its data come from."""
CHECKPOINT = ".checkpoint.safetensors"
"""What a run that was stopped leaves beside its --out."""


@click.command(name="finetune")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--epochs", "-n", type=int, required=True, help="Passes over the training data.")
@click.option("--max-minutes", type=float, help="Stop training after so long; the schedule then ends with it.")
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--data", help="Again, if the search was given data: what accuracy is measured on.")
@click.option("--train-data", help="Your data to train on, in the form of --data, with other samples.")
@click.option("--learning-rate", type=float, help="The peak, as a share of each channel's range of weights. [0.001]")
@click.option("--distillation", type=float, help="The share of FP32's answers in the loss; labels are the rest. [1]")
@click.option("--seed", type=int, help="Same seed and threads, same result. [0]")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The config to write, a .json file.")
@json_option
def finetune_command(config: Path, out: Path, *, as_json: bool, **flags: Any) -> None:
    """Train the quantized network of CONFIG to answer as its FP32 original does, and measure what comes out.

    Weights are rounded while they are trained (straight-through), and the quantizers' step sizes are learned (LSQ). The
    numbers go into a .safetensors file beside OUT. The same command goes on after Ctrl-C or a kill.
    """
    asked = {key: value for key, value in flags.items() if value is not None}
    sources: dict[str, str] = {key: asked.pop(key) for key in SOURCES if key in asked}
    if "max_minutes" in asked:
        asked["max_seconds"] = 60 * asked.pop("max_minutes")
    try:
        found = finetune(config, out, sources, asked, _log)
    except KeyboardInterrupt:
        if out.with_suffix(CHECKPOINT).is_file():
            click.echo("to go on: the same command again", err=True)
        raise
    if as_json:
        echo_json(found)
        return
    _show(found, out)


def _log(event: Started | EpochDone) -> None:
    click.echo(_line(event), err=True)


def _line(event: Started | EpochDone) -> str:
    from haq.nn.finetune import Started

    if isinstance(event, Started):
        before = f"; {event.done} steps are there from before" if event.done else ""
        return (
            f"as quantized: {_accuracy(event.quantized)}; {event.epochs} epochs of {event.steps} steps will take about "
            f"{duration(event.left_s)}{before}"
        )
    return (
        f"epoch {event.epoch}/{event.epochs}: loss {event.loss:.4f}, {_accuracy(event.search)}, "
        f"{duration(event.left_s)} left"
    )


def _accuracy(measurement: Any) -> str:
    return f"{percent(measurement.accuracy)} on search, {0.0 - measurement.drop_points:+.2f} points"


def _show(found: Mapping[str, Any], out: Path) -> None:
    tuned = found["provenance"]["finetune"]
    rows = []
    for key in ("accuracy", "accuracy_validation"):
        if key in tuned["before"]:
            before, after = tuned["before"][key], found["metrics"][key]
            cells = (f"{before['drop_points']:+.2f}", f"{after['drop_points']:+.2f}", _interval(after))
            rows.append((after["split"], str(after["samples"]), percent(after["value"]), *cells))
    title = f"{found['id']}: measured accuracy, and points under FP32 on the same samples"
    table(title, ("split", "samples", "accuracy", "drop before", "drop now", "95 %"), rows)
    minutes = duration(tuned["seconds"])
    kept = f"of epoch {tuned['epoch_kept']}" if tuned["epoch_kept"] else "of the start: no epoch was better"
    echo(f"trained {tuned['steps']} steps in {minutes}; the numbers are those {kept}, judged on the search split")
    echo(f"wrote {out} and {found['parameters']}")


def _interval(metric: Mapping[str, Any]) -> str:
    if "drop_interval" not in metric:
        return "unknown"
    return f"{metric['drop_interval']['low']:+.2f} to {metric['drop_interval']['high']:+.2f}"


COMMANDS = (finetune_command,)
