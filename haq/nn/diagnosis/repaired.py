"""Turns the final change of a recovery into files: a config, and the numbers beside it where they are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from haq.configfile import write_config
from haq.diagnose.finding import Change
from haq.diagnose.stepping import REPAIRED, with_layers
from haq.errors import InputError
from haq.nn.diagnosis.subject import Subject
from haq.nn.exportable import Exportable
from haq.nn.smoothed import smoothing_of
from haq.nn.tuned import write_tuned

OF_THE_COMPILER = frozenset({"wide_accumulator", "own_scale", "unforce"})
"""Repairs that change what the device does, and no number of the network."""


def write_repaired(
    what: Exportable, subject: Subject, change: Change, metrics: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Write the config of the subject at `out`; returns its content.

    what: the config that it came from. subject: its network with the change. metrics: of the config that is written.
    Repairs of numbers put all numbers into a safetensors file beside the config, which then needs no calibration; so
    do raised layers of a config that had such a file. Raises InputError where `out` cannot be written to.
    """
    raised = {layer: str(precision) for layer, precision in change.raised}
    raw = with_layers(what.config, raised, metrics)
    repairs = [{"kind": r.kind, "layer": r.layer} for r in change.repairs]
    about = {"from": what.config["id"], "raised": sorted(raised), "repairs": repairs}
    raw["provenance"] = {**raw.get("provenance", {}), "recovery": about}
    own_numbers = any(repair.kind not in OF_THE_COMPILER for repair in change.repairs)
    if own_numbers or "parameters" in raw:
        if own_numbers and not str(raw["id"]).endswith(REPAIRED):
            raw["id"] = str(raw["id"]).removesuffix("-tuned") + REPAIRED
        numbers = out.with_suffix(".safetensors")
        raw |= {"parameters": numbers.name, "parameters_sha256": _write_numbers(what, subject, numbers)}
    write_config(out, raw)
    return raw


def _write_numbers(what: Exportable, subject: Subject, file: Path) -> str:
    """The hash of the file; what a repair moved from a layer's input into its weight is in it, too."""
    smoothing = dict(what.numbers.smoothing)
    for name, factors in smoothing_of(subject.model, what.model).items():
        smoothing[name] = smoothing[name] * factors if name in smoothing else factors
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return write_tuned(file, replace(subject.numbers, smoothing=smoothing))
    except OSError as error:
        raise InputError("cannot write the parameters", where=str(file), got=error.strerror) from None
