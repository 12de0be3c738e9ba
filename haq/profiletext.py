"""Writes fitted figures and residuals into a profile's TOML, whose comments and order stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit

from haq.fitting import SPREAD_SHARE, Calibration, figure_path
from haq.hardware.calibrate import Estimated, FitResult
from haq.hardware.calibration import Fit
from haq.hardware.figures import rounded
from haq.tomltext import inline, lines


def calibrated_text(found: Calibration) -> str:
    """The text of the calibrated profile: what a second calibration of it would write again."""
    document = tomlkit.parse(found.path.read_text(encoding="utf-8"))
    for index, (one, result) in enumerate(zip(found.fits, found.results, strict=True)):
        source = _source(one, result, found.measurements.name)
        for parameter in result.parameters:
            for key in parameter.free.keys:
                _set(document, figure_path(one.option, key), parameter, source)
        table = document["fits"][index]
        table["measurements"] = found.sha256
        table["error"] = rounded(float(abs(result.errors).mean()))
        table["residuals"] = lines(result.residuals)
    _set_spread(document, found)
    return tomlkit.dumps(document)


def _source(one: Fit, result: FitResult, measurements: str) -> str:
    models = ", ".join(dict.fromkeys(row.model for row in result.observations))
    return f"haq calibrate: {len(result.observations)} rows of {one.runtime} in {measurements} ({models})"


def _set(document: Any, names: Sequence[str], parameter: Estimated, source: str) -> None:
    """Replace a figure's value, source, status and uncertainty; its unit stays."""
    table = document
    for name in names[:-1]:
        table = table[name]
    table[names[-1]] = inline(
        {
            "value": rounded(parameter.value),
            "unit": str(table[names[-1]]["unit"]),
            "source": source,
            "status": "fitted",
            # of a logarithm to a ratio: one deviation of 0.1 is 11 %
            "uncertainty": rounded(math.expm1(parameter.sd)),
        }
    )


def _set_spread(document: Any, found: Calibration) -> None:
    """The error that rows of unseen models stay within; an assumed one is a floor, which few models cannot lower."""
    spread, old = found.spread, document["latency_spread"]
    if spread is None or (old["status"] == "assumed" and old["value"] >= spread):
        return
    models = len({row.model for result in found.results for row in result.observations if row.id in found.unseen})
    document["latency_spread"] = inline(
        {
            "value": rounded(spread),
            "unit": "fraction",
            "source": f"haq calibrate: {SPREAD_SHARE:.0%} of {len(found.unseen)} rows of {models} models, each "
            "predicted without its model, are nearer than this",
            "status": "fitted",
        }
    )


def summary(found: Calibration) -> list[Mapping[str, Any]]:
    """One row per free parameter: runtime, keys, prior, value, uncertainty (relative), unit from the profile."""
    return [
        {
            "runtime": one.runtime,
            "keys": list(parameter.free.keys),
            "prior": parameter.free.prior,
            "value": rounded(parameter.value),
            "uncertainty": rounded(math.expm1(parameter.sd)),
        }
        for one, result in zip(found.fits, found.results, strict=True)
        for parameter in result.parameters
    ]
