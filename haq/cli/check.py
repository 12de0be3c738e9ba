"""`haq check`: compare what a network is served with what it was calibrated on, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from haq.checking import Checked, check
from haq.cli.show import echo, echo_json, json_option, table
from haq.drift import CLIPPED_SHARE, SIGNIFICANCE, Limits, OperandDrift
from haq.errors import CheckFailed, InputError

SOURCES = {"space": "space", "model": "model", "weights": "weights", "calibration_data": "data"}
"""Flags that say where the network and what it was calibrated on come from -> what other commands call them."""


@click.command(name="check")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--data", "-d", required=True, type=click.Path(path_type=Path),
              help="Served now: images, texts, or a .npz, .npy or .safetensors file of prepared inputs.")  # fmt: skip
@click.option("--max-disagreement-points", type=float, metavar="POINTS", help="Answers that are not FP32's. [no limit]")
@click.option("--max-clipped", type=float, metavar="PERCENT",
              help=f"Of a layer's input, above what calibration data had. [{100 * CLIPPED_SHARE:g}]")  # fmt: skip
@click.option("--significance", type=float, metavar="SHARE",
              help=f"Chance of any false alarm over all layers; 0: no alarm of drift. [{SIGNIFICANCE}]")  # fmt: skip
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--calibration-data", help="What the search was given as --data, if it was.")
@json_option
def check_command(config: Path, data: Path, *, as_json: bool, **flags: Any) -> None:
    """Compare the data that CONFIG's network is served with its activation summaries, layer by layer.

    Names the layers whose inputs are no longer those of calibration, and estimates the loss without labels: how often
    the quantized network answers otherwise than FP32 on the same samples. CONFIG is one that `haq export` wrote. Exit
    code 1 beyond a limit.
    """
    given = {name: flags[flag] for flag, name in SOURCES.items() if flags[flag] is not None}
    found = check(config, data, given, _limits(flags))
    if as_json:
        echo_json(found.to_json())
    else:
        _show(found)
    if faults := found.faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckFailed(f"the data are not what the config was made for: {faults[0]}{more}")


def _limits(flags: dict[str, Any]) -> Limits:
    points, clipped, significance = (
        flags["max_disagreement_points"], flags["max_clipped"], flags["significance"]
    )  # fmt: skip
    given = (
        ("--max-disagreement-points", points, 100),
        ("--max-clipped", clipped, 100),
        ("--significance", significance, 0.5),
    )
    for name, value, most in given:
        if value is not None and not 0 <= value <= most:
            raise InputError("a limit out of range", where=name, got=value, expected=f"0 to {most}")
    return Limits(
        SIGNIFICANCE if significance is None else significance,
        CLIPPED_SHARE if clipped is None else clipped / 100,
        None if points is None else points / 100,
    )


def _show(found: Checked) -> None:
    config, drift = found.config, found.drift
    title = f"{config['id']} of {config['model']['model']} for {config['target']['name']}, {drift.inputs:,} samples"
    columns = (
        "layer",
        "verdict",
        "calibrated",
        "served",
        "peak ratio",
        "clipped, calibrated",
        "clipped",
        "distance",
        "p",
    )
    shown = drift.alarms or drift.operands[:1]
    table(title, columns, [_row(operand) for operand in shown], left=4)
    echo(f"{len(drift.alarms)} of {len(drift.operands)} layer inputs raise an alarm; a false one among all of them has "
         f"a chance of at most {100 * drift.limits.significance:g} %")  # fmt: skip
    if drift.unobserved:
        echo(f"not seen: {', '.join(drift.unobserved[:5])}{' ...' if len(drift.unobserved) > 5 else ''}")
    if (agreement := found.agreement) is not None:
        low, high = 100 * agreement.interval.low, 100 * agreement.interval.high
        echo(f"answers other than FP32's: {100 * agreement.disagreement:.2f} % ({low:.2f} to {high:.2f}), "
             "and accuracy cannot have lost more points")  # fmt: skip
        if agreement.kl_nats is not None and agreement.kl_interval is not None:
            low, high = agreement.kl_interval.low, agreement.kl_interval.high
            echo(f"KL(FP32 || quantized): {agreement.kl_nats:.4g} nats ({low:.4g} to {high:.4g})")


def _row(operand: OperandDrift) -> tuple[str, ...]:
    name = f"{operand.layer}:{operand.index}" if operand.index else operand.layer
    words = [word for word, holds in (
        ("not finite", operand.not_finite > 0), ("drifted", operand.drifted), ("clips", operand.clips)
    ) if holds]  # fmt: skip
    return (
        name, ", ".join(words) or "as calibrated", _ends(operand.calibrated), _ends(operand.seen),
        "" if operand.peak_ratio is None else f"{operand.peak_ratio:.2f}",
        _percent(operand.calibrated_clipped_share), _percent(operand.clipped_share),
        f"{max(operand.distances):.2f}", f"{operand.p_value:.2g}",
    )  # fmt: skip


def _ends(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


COMMANDS = (check_command,)
