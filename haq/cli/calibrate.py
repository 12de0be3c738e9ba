"""`haq calibrate`: fit a profile's free parameters to measured latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from haq.cli.show import echo, echo_json, json_option, table
from haq.textfile import write_file

if TYPE_CHECKING:  # fitting loads scipy, which no other command needs
    from haq.fitting import Calibration
    from haq.hardware.calibrate import FitResult
    from haq.hardware.calibration import Fit


@click.command()
@click.argument("profile")
@click.argument("measurements", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the calibrated profile here (a TOML file).")
@json_option
def calibrate(profile: str, measurements: Path, out: Path | None, *, as_json: bool) -> None:
    """Fit the free parameters of PROFILE to the latencies in MEASUREMENTS.

    PROFILE is a name of `haq targets` or a TOML path whose [[fits]] tables say what is free and what is expected of it;
    MEASUREMENTS a CSV with the columns id, target, runtime, space, input, batch, precision, latency_ms, source, note,
    or a run directory, of which what `haq verify --record` measured is taken.
    Nothing is written without --out, which may be PROFILE itself.
    """
    from haq.fitting import calibrate as run_calibration
    from haq.profiletext import calibrated_text, summary

    found = run_calibration(profile, measurements)
    parameters = summary(found)
    if out is not None:
        write_file(out, calibrated_text(found), "profile")
    if as_json:
        echo_json(
            {
                "profile": found.profile,
                "measurements": found.sha256,
                "parameters": parameters,
                "fits": [_fit(one, result) for one, result in zip(found.fits, found.results, strict=True)],
                "unseen": dict(found.unseen),
            }
        )
        return
    _show(found, parameters)
    echo(f"written: {out}" if out is not None else "nothing is written without --out FILE")


def _fit(one: Fit, result: FitResult) -> dict[str, Any]:
    errors = dict(zip((row.id for row in result.observations), result.errors.tolist(), strict=True))
    return {"runtime": one.runtime, "option": one.option, "errors": errors}


def _show(found: Calibration, parameters: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for row in parameters:
        first, *others = row["keys"]
        name = f"{first} and {len(others)} more" if others else first
        spread = f"+-{100 * row['uncertainty']:.0f} %"
        rows.append((row["runtime"], name, f"{row['prior']:g}", f"{row['value']:.4g}", spread))
    columns = ("runtime", "parameter", "expected", "fitted", "uncertainty")
    table(f"{found.profile}: what was fitted, in the profile's units", columns, rows, left=2)
    for one, result in zip(found.fits, found.results, strict=True):
        worst = int(np.abs(result.errors).argmax())
        at = result.observations[worst]
        echo(
            f"{one.runtime}: {len(result.observations)} rows, mean error {100 * np.abs(result.errors).mean():.1f} %, "
            f"worst {100 * result.errors[worst]:+.0f} % ({at.id}: {at.model}, batch {at.batch})"
        )
    if found.unseen:
        errors = np.abs(list(found.unseen.values()))
        echo(f"models left out of the fit in turn: mean error {100 * errors.mean():.1f} % over {len(errors)} rows")
    else:
        echo("one model only: nothing could be left out, so the error on others is unknown")


COMMANDS = (calibrate,)
