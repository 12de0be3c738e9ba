"""Applies one step of a config's own recovery ladder: no model, no data, no search, nothing that takes time to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.candidate import config_id
from haq.configfile import numbers_to_copy
from haq.errors import InputError
from haq.precision import Assignment, Precision

REPAIRED = "-repaired"
"""What the id of a config ends with whose numbers were repaired: its layers alone do not name it."""


def stepped(raw: Mapping[str, Any], step: int, where: str) -> dict[str, Any]:
    """The config after so many steps of its ladder, counted from 1; what is above stays its ladder.

    Raises InputError where there is no such step, or where it names layers that the config has not.
    """
    steps = raw.get("recovery", [])
    if not steps:
        raise InputError(
            "the config carries no recovery ladder", where=where, expected="a config that `haq export` wrote",
            way_out="haq recover CONFIG --max-drop POINTS",
        )  # fmt: skip
    if not 1 <= step <= len(steps):
        raise InputError("no such step", where="--step", got=step, expected=f"1 to {len(steps)}")
    chosen = steps[step - 1]
    if odd := [name for name in chosen["layers"] if name not in raw["layers"]]:
        raise InputError("a step names a layer that the config has not", where=where, got=odd[0])
    result = with_layers(raw, chosen["layers"], chosen["metrics"])
    left = []
    for later in steps[step:]:
        layers = {name: text for name, text in later["layers"].items() if result["layers"][name] != text}
        left.append({**later, "layers": layers})
    provenance = {**raw.get("provenance", {}), "recovery": {"from": raw["id"], "step": step}}
    result = {**result, "provenance": provenance}
    if left:
        result["recovery"] = left
    return result


def with_layers(raw: Mapping[str, Any], layers: Mapping[str, str], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The config with some layers in other precisions and these metrics: all others were another network's.

    A raised layer asks for the bits of its weight format, which mean that precision on the target. Its ladder goes.
    """
    executed = {name: layers.get(name, text) for name, text in raw["layers"].items()}
    target = raw["target"]["name"]
    result = {key: value for key, value in raw.items() if key not in ("recovery", "metrics")}
    result["id"] = _id(raw, Assignment.from_json(executed), target)
    result["layers"], result["metrics"] = executed, dict(metrics)
    if "requested_bits" in raw:
        result["requested_bits"] = {
            name: Precision.parse(layers[name]).weight.bits if name in layers else bits
            for name, bits in raw["requested_bits"].items()
        }
    if "fallbacks" in raw:
        result["fallbacks"] = [entry for entry in raw["fallbacks"] if entry["layer"] not in layers]
    if "activations" in raw:
        # Of layer:operand; what a raised layer reads is no longer rounded as it was when it was summarized.
        kept = {key: about for key, about in raw["activations"].items() if key.rpartition(":")[0] not in layers}
        result = {key: value for key, value in result.items() if key != "activations"}
        result |= {"activations": kept} if kept else {}
    return result


def parameters_beside(raw: Mapping[str, Any], source: Path, out: Path) -> tuple[Path, bytes] | None:
    """The numbers that a config's copy at `out` needs beside it, and where; None where they lie there or are none.

    Raises InputError when they are absent, not its own, or would overwrite others.
    """
    if "parameters" not in raw:
        return None
    name = Path(str(raw["parameters"])).name
    here = out.parent / name
    numbers = numbers_to_copy(source.parent / name, here, str(raw.get("parameters_sha256")))
    return None if numbers is None else (here, numbers)


def _id(raw: Mapping[str, Any], executed: Assignment, target: str) -> str:
    """The content's hash; a config with numbers of its own keeps what says so."""
    endings = [ending for ending in ("-tuned", REPAIRED) if str(raw["id"]).endswith(ending)]
    return config_id(executed, target) + (endings[0] if endings else "")
