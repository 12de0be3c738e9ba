"""Plants faults of cost in an assignment: formats that do not run, and narrow islands that cost more than they save."""

from __future__ import annotations

from haq.errors import InputError, lookup
from haq.hardware.cost import estimate
from haq.hardware.legalize import execution, legalize, meaning
from haq.hardware.schema import HardwareProfile
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.workload import LayerSpec, Workload

_PRECISIONS = tuple(map(Precision.parse, ("int4/int8", "int4/int4", "int8/int8", "fp32/fp32")))
_ASKED: tuple[int | Precision, ...] = (*BIT_WIDTHS, *_PRECISIONS)
"""What a config may ask for, the searched widths first: the first that a target does not execute is planted."""
BATCH = 1
"""Islands are judged at batch 1, where converts cost most against what they are around."""


def plant_not_executed(
    workload: Workload, requested: Assignment, profile: HardwareProfile, layer: str, count: int = 1
) -> Assignment:
    """`requested` with `count` layers, from `layer` on, asking for what the target does not execute.

    Only layers of `cost_places` count; fewer where the network ends. Each asks for the narrowest width that falls back
    (4 bits of a convolution on a100 or mobile), or for a precision where every width has a row (int4/int8 on a TPU).
    Raises InputError where the target executes all that can be asked of the layer.
    """
    places = cost_places(workload, profile, "not-executed")
    _check_place(layer, places, f"{profile.name}, not-executed")
    specs = {spec.name: spec for spec in workload.layers}
    chosen = places[places.index(layer) :][:count]
    asked = {name: ask for name in chosen if (ask := _not_executed(specs[name], profile)) is not None}
    return Assignment.of({**requested, **asked})


def plant_no_speedup(
    workload: Workload, requested: Assignment, profile: HardwareProfile, layer: str, count: int = 1
) -> Assignment:
    """16 bits for all layers but `count` islands of one 8-bit layer, from `layer` on.

    Islands are taken from `cost_places` so that no two follow each other in the order of layers.
    Each island's converts cost more than its narrowing gains. requested: gives the layers, and their order. Raises
    InputError where 8 bits alone are no slower on the target at batch 1 (a TPU, which converts nothing).
    """
    places = cost_places(workload, profile, "no-speedup")
    _check_place(layer, places, f"{profile.name}, no-speedup")
    chosen = islands(workload, places, layer, count)
    return Assignment.of({name: 8 if name in chosen else 16 for name in requested})


def cost_places(workload: Workload, profile: HardwareProfile, mode: str) -> tuple[str, ...]:
    """The layers where a fault of cost can be planted on this target, in the order in which they run."""
    return lookup({"not-executed": _refused, "no-speedup": _slower_alone}, mode, "mode of cost")(workload, profile)


def islands(workload: Workload, places: tuple[str, ...], layer: str, count: int) -> tuple[str, ...]:
    """`layer` and the places after it, of which no two follow each other in the workload's order."""
    order = {name: number for number, name in enumerate(workload.layer_names)}
    chosen = [layer]
    for name in places[places.index(layer) + 1 :]:
        if len(chosen) < count and order[name] > order[chosen[-1]] + 1:
            chosen.append(name)
    return tuple(chosen)


def _refused(workload: Workload, profile: HardwareProfile) -> tuple[str, ...]:
    return tuple(spec.name for spec in workload.layers if _not_executed(spec, profile) is not None)


def _slower_alone(workload: Workload, profile: HardwareProfile) -> tuple[str, ...]:
    wide = Assignment.uniform(workload.layer_names, 16)

    def latency_ms(assignment: Assignment) -> float:
        executed = legalize(workload, assignment, profile).executed
        return estimate(workload, executed, profile, batch=BATCH).latency_ms

    before = latency_ms(wide)
    return tuple(name for name in workload.layer_names if latency_ms(Assignment.of({**wide, name: 8})) > before)


def _not_executed(layer: LayerSpec, profile: HardwareProfile) -> int | Precision | None:
    """What to ask of the layer so that something else runs; None where all runs that can be asked."""
    return next((ask for ask in _ASKED if _falls_back(layer, profile, ask)), None)


def _falls_back(layer: LayerSpec, profile: HardwareProfile, ask: int | Precision) -> bool:
    asked = meaning(profile, layer, ask)
    return execution(profile, layer, asked)[0] != asked


def _check_place(layer: str, places: tuple[str, ...], where: str) -> None:
    if layer not in places:
        raise InputError(
            "the fault cannot be planted in this layer", where=where, got=layer,
            expected=f"one of {', '.join(places) or 'no layer at all'}",
        )  # fmt: skip
