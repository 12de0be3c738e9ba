"""Measures a device from its name: every kernel of its grid timed, its profile fitted, its table made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from haq.errors import InputError, lookup
from haq.measure.benches import SWEEPS, time_benches
from haq.measure.chain import Bench
from haq.measure.cpu import cpu
from haq.measure.cuda import cuda
from haq.measure.device import Device
from haq.measure.fitting import Fitted, fit_device
from haq.measure.machine import OthersWatch, this_machine
from haq.measure.timing import Effort, Timing

DEVICES: Mapping[str, Callable[[int | None], Device]] = {"cpu": cpu, "cuda": cuda}
"""What can be measured: name -> the device for a number of threads."""

TIMED = 0.4
"""The part of the time that goes into timed calls; the rest is making models ready, and warming up."""

LEAST_S = 0.005
"""Seconds of timed calls per bench and sweep, under which a median says little."""

Progress = Callable[[int, int], object]
"""Is told how many benches are done, of how many."""


@dataclass(frozen=True)
class Measured:
    """What `haq measure` found. others: the share of the cores that other programs took; None where nobody tells."""

    device: Device
    timings: Mapping[Bench, Timing]
    fitted: Fitted
    others: float | None = None


def open_device(name: str, threads: int | None) -> Device:
    """The device of this name; raises InputError for an unknown one, or one that this machine lacks."""
    return lookup(DEVICES, name, "device", where="--device")(threads)


def measure(device: Device, seconds: float, progress: Progress) -> Measured:
    """Time, fit and tabulate. seconds: about how long it may take; raises InputError where that is too little."""
    benches = device.benches
    each = TIMED * seconds / (SWEEPS * len(benches))
    if each < LEAST_S:
        raise InputError(
            "too little time for repeats", where="--seconds", got=f"{seconds:g}",
            expected=f"at least {LEAST_S * SWEEPS * len(benches) / TIMED:.0f} for {len(benches)} benches",
        )  # fmt: skip
    watch = OthersWatch(this_machine().cores)
    watch.start()
    timings = time_benches(benches, device.ready, Effort(each), progress)
    others = watch.share()
    fitted = fit_device(device, timings)
    taken = "an unknown share" if others is None else f"{100 * others:.0f} %"
    fitted.document["confidence_note"] += f"; other programs took {taken} of the cores meanwhile"
    return Measured(device, timings, fitted, others)
