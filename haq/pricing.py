"""Prices one assignment on one target against FP32 there: what `haq estimate` returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haq.candidate import Fallback
from haq.configfile import checked_config, executed_assignment, read_json
from haq.configschema import SCHEMA
from haq.errors import InputError, nearest
from haq.hardware.cost import CostBreakdown, estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile, load_profile
from haq.hardware.size import fp32_size_bytes
from haq.precision import BIT_WIDTHS, Assignment
from haq.scaling import PLAIN, Scaling
from haq.trust import Trust
from haq.workload import Workload


@dataclass(frozen=True)
class Estimate:
    """The modelled cost of an assignment.

    baseline: of FP32 as the same target runs it, but its size as stored in FP32. scaling: the scales that bit-widths
    ask for.
    """

    workload: Workload
    profile: HardwareProfile
    executed: Assignment
    fallbacks: tuple[Fallback, ...]
    cost: CostBreakdown
    baseline: CostBreakdown
    scaling: Scaling = PLAIN

    def unsupported_counts(self) -> dict[str, int]:
        """Op -> how often it occurs without a price."""
        return dict(Counter(op.op for op in self.workload.unsupported))

    def to_json(self) -> dict[str, Any]:
        """The keys of decision 11, and how far the latency can be trusted; what is unknown is absent."""
        return {**self.cost.to_json(self.fallbacks, self.workload.unsupported), **Trust.of(self.profile).to_json()}


def price(
    workload: Workload, target: str, choice: int | Assignment | Path, *, batch: int, scaling: Scaling = PLAIN
) -> Estimate:
    """The cost of a uniform bit-width, an assignment or a config file; raises InputError where it does not fit.

    scaling: the scales that bit-widths ask for; an assignment of formats alone, which say their own, takes none.
    """
    profile = load_profile(target)
    if isinstance(choice, Path):
        asked = read_assignment(choice, workload)
    elif isinstance(choice, int):
        asked = Assignment.uniform(workload.layer_names, choice)
    else:
        asked = choice
    if scaling != PLAIN and not any(isinstance(bits, int) for bits in asked.values()):
        raise InputError(
            "groups and scales per token are for bit-widths", got="an assignment of formats, which say their own",
            expected="formats such as int4g64/int8t in it, or bit-widths",
        )  # fmt: skip
    legal = legalize(workload, asked, profile, scaling)
    fp32 = legalize(workload, Assignment.uniform(workload.layer_names, 32), profile)
    return Estimate(
        workload,
        profile,
        legal.executed,
        legal.fallbacks,
        estimate(workload, legal.executed, profile, batch=batch),
        replace(estimate(workload, fp32.executed, profile, batch=batch), size_bytes=fp32_size_bytes(workload)),
        scaling,
    )


def read_assignment(path: Path, workload: Workload) -> Assignment:
    """The assignment of a haq.config/v1 file or of plain JSON `{layer: bits or "int4/int8"}`, checked to fit."""
    expected = f"{SCHEMA} or {{layer: bits}}"
    raw = read_json(path, expected)
    if not isinstance(raw, dict):
        raise InputError("not a config", where=str(path), got=type(raw).__name__, expected=expected)
    if "schema" in raw:
        chosen: dict[str, Any] = dict(executed_assignment(checked_config(raw, path)))
    else:
        chosen = dict(raw)
        for layer, bits in chosen.items():
            if not isinstance(bits, str) and (isinstance(bits, bool) or bits not in BIT_WIDTHS):
                raise InputError(
                    "not a bit-width", where=f"{path}, layer {layer!r}", got=bits, expected="4, 8, 16, 32 or int4/int8"
                )
        chosen = dict(Assignment.from_json(chosen))
    names = workload.layer_names
    for layer in chosen:
        if layer not in names:
            raise InputError(
                "no such layer", where=str(path), got=layer, expected=f"a layer of {workload.name}",
                way_out=nearest(layer, names),
            )  # fmt: skip
    missing = [layer for layer in names if layer not in chosen]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} layers of {workload.name} have no precision", where=str(path),
            expected=f"every layer, also {missing[0]!r}",
        )  # fmt: skip
    return Assignment.of({layer: chosen[layer] for layer in names})
