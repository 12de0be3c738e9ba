"""Runs a candidate from its first changed layer on: modules that finished before it give what they gave in FP32."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.nn.recording import Call, Kept, Recording, forwards
from haq.nn.sites import storage_key
from haq.nn.task import Inputs, forward
from haq.workload import Workload


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a candidate answered. share: of the network's multiply-accumulates that had to run for it, 0 to 1."""

    output: Any
    share: float


def replayed(
    candidate: nn.Module, recording: Recording, workload: Workload, changed: Collection[str], inputs: Inputs
) -> Replayed:
    """The candidate's output on the recorded batch, bit for bit that of its full forward pass.

    candidate: the recorded model with other parameters and hooks at the layers named in `changed`, as Simulator builds
    it; it is as it was afterwards. The outermost modules whose whole call lies before the first changed layer are not
    run. A call that contains another call of a changed layer's name is, since layers are counted as they run.
    """
    calls = _finished(recording, changed, _first_change(candidate, recording, changed))
    live = _live_storages(recording, calls)
    given: dict[str, list[Kept | None]] = {}
    hidden: set[int] = set()
    for place, call in enumerate(recording.calls):
        if call.parent in hidden:
            hidden.add(place)  # it does not run, and is not counted
            continue
        if place in calls:
            hidden.add(place)
        given.setdefault(call.module, []).append(calls[place].kept if place in calls else None)
    functions = {
        name: _giving(candidate.get_submodule(name).forward, sequence, live)
        for name, sequence in given.items()
        if any(kept is not None for kept in sequence)
    }
    with forwards(candidate, functions):
        return Replayed(forward(candidate, inputs), _share(recording, workload, calls))


def _giving(inner: Callable[..., Any], sequence: list[Kept | None], live: frozenset[int]) -> Callable[..., Any]:
    """A forward that returns what was kept for this call, and runs where nothing was."""
    left = iter(sequence)

    def give(*args: Any, **kwargs: Any) -> Any:
        kept = next(left, None)
        # What an op reads may also be rounded in place by it; the next candidate needs it as it was.
        return inner(*args, **kwargs) if kept is None else kept.value(copy=not live.isdisjoint(kept.storages))

    return give


def _first_change(candidate: nn.Module, recording: Recording, changed: Collection[str]) -> int:
    """The first op that may differ: of a changed layer, or one that reads a parameter that is not the recorded one."""
    modules = dict(candidate.named_modules())
    swapped = {
        storage_key(parameter)
        for (module, name), parameter in recording.parameters.items()
        if parameter is not None and (module not in modules or modules[module]._parameters.get(name) is not parameter)
    }
    starts = [position.start for position in recording.layers if position.layer in changed]
    reads = (op for op, touched in enumerate(recording.touched) if not swapped.isdisjoint(touched))
    return min(*starts, next(reads, len(recording.touched)), len(recording.touched))


def _finished(recording: Recording, changed: Collection[str], end: int) -> dict[int, Call]:
    """Place -> call, of the outermost calls that can be replayed and lie before the op `end`."""
    names = {layer.split("@")[0] for layer in changed}
    # A changed layer may run again under another number; calls that hold one of the name must be counted.
    counted = [position.op for position in recording.layers if position.layer.split("@")[0] in names]
    found: dict[int, Call] = {}
    hidden: set[int] = set()
    for place, call in enumerate(recording.calls):
        if call.parent in hidden:
            hidden.add(place)
        elif call.kept is not None and call.end <= end and not _holds(counted, call):
            found[place] = call
            hidden.add(place)
    return found


def _holds(ops: list[int], call: Call) -> bool:
    """Whether one of the ascending op numbers lies in the call."""
    return bisect_left(ops, call.start) < bisect_left(ops, call.end)


def _live_storages(recording: Recording, calls: Mapping[int, Call]) -> frozenset[int]:
    """The storages that an op outside of these calls touches, or that leave the network."""
    skipped = {op for call in calls.values() for op in range(call.start, call.end)}
    touched = (storages for op, storages in enumerate(recording.touched) if op not in skipped)
    return recording.returned.union(*touched)


def _share(recording: Recording, workload: Workload, calls: Mapping[int, Call]) -> float:
    """Multiply-accumulates outside of these calls as a fraction of all."""
    if not workload.macs:
        return 1.0
    macs = {layer.name: layer.macs for layer in workload.layers}
    spared = sum(
        macs.get(position.layer, 0)
        for position in recording.layers
        if any(call.start <= position.op < call.end for call in calls.values())
    )
    return 1 - spared / workload.macs
