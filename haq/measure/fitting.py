"""Fits a profile to timed benches: what the fastest kernels reach, then every free rate, then the table of ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from haq.errors import InputError
from haq.hardware.calibrate import FitResult, fit
from haq.hardware.figures import rounded
from haq.hardware.ledger import Observation
from haq.hardware.lookup import Row
from haq.hardware.profile import HardwareProfile, build_profile
from haq.measure.chain import Bench, Case
from haq.measure.device import Device, Document, Limits, Streams, figure
from haq.measure.rows import difference_us, rows_of
from haq.measure.timing import Timing
from haq.workload import LayerSpec

MOST_NOISE = 0.1
"""A comparison noisier than this sets no limit."""


@dataclass(frozen=True)
class Fitted:
    """document: of the profile, with fitted figures and no table yet. rows: of the table."""

    document: Document
    result: FitResult
    rows: tuple[Row, ...]


def limits_of(cases: Sequence[Case], streams: Streams, timings: Mapping[Bench, Timing]) -> Limits:
    """The most operations per second that a comparison showed, per format, and how fast weights are read."""
    rates: dict[str, float] = {}
    for fmt in dict.fromkeys(fmt for case in cases if case.nodes for fmt in case.longer.formats):
        found = [(case, *alone) for case in cases if fmt in case.longer.formats and (alone := _alone(case, timings))]
        clear = [row for row in found if row[-1] < MOST_NOISE] or found
        if not clear:
            raise InputError(
                f"no {fmt} kernel stands out of the noise", where="haq measure", got="chains as fast as shorter ones",
                expected="a machine that does nothing else meanwhile", way_out="measure again, with more --seconds",
            )  # fmt: skip
        rates[fmt] = max(operations / seconds for _, operations, seconds, _ in clear)
    at_once, paused = ([(size, timings[b].median_s) for size, b in s] for s in (streams.at_once, streams.paused))
    hot, cold = (seconds / size for size, seconds in (at_once[0], at_once[-1]))
    after_pause = [(size, seconds - paused[0][1]) for size, seconds in paused[1:]] or at_once
    cache, kept = (_half_way((hot + cold) / 2, times) for times in (at_once, after_pause))
    return Limits(rates, 1 / max(hot, cold), cache, 1 / hot, kept, timings[streams.smallest].median_s)


def _half_way(per_byte: float, times: Sequence[tuple[int, float]]) -> float:
    """The size from which reading takes longer per byte; the largest that was tried where it never does."""
    slower = np.maximum.accumulate([seconds / size for size, seconds in times])
    return float(np.interp(per_byte, slower, [size for size, _ in times]))


def _alone(case: Case, timings: Mapping[Bench, Timing]) -> tuple[float, float, float] | None:
    """Operations, seconds and noise of a comparison of layers alone; None for any other, and for pure noise."""
    nodes = [node for node in case.longer.workload.nodes if node.name in case.nodes]
    layers = [node for node in nodes if isinstance(node, LayerSpec)]
    microseconds, error = difference_us(case, timings)
    is_alone = all(isinstance(node, LayerSpec) or node.kind == "activation" for node in nodes)
    if not layers or not is_alone or microseconds <= 0:
        return None
    return 2.0 * sum(layer.macs for layer in layers), 1e-6 * microseconds, error / microseconds


def fit_device(device: Device, timings: Mapping[Bench, Timing]) -> Fitted:
    """The device's profile with its free figures fitted to the longer bench of every case, and the table of all."""
    limits = limits_of(device.cases, device.streams, timings)
    document = device.document(limits)
    free = device.free(document)
    before = _profiles(document, device)
    benches = tuple(dict.fromkeys(case.longer for case in device.cases))
    result = fit(free, [_observation(b, before[_option(b, device)], timings[b]) for b in benches])
    for parameter in result.parameters:
        for key in parameter.free.keys:
            figure(document, key).update(
                value=rounded(parameter.value), source=f"fitted to {len(benches)} chains of kernels timed on it",
                status="fitted", uncertainty=float(f"{math.expm1(parameter.sd):.3g}"),
            )  # fmt: skip
    after = _profiles(document, device)
    rows = [row for case in device.cases for row in rows_of(case, timings, after[_option(case.longer, device)])]
    device.later(document, limits)
    return Fitted(document, result, tuple(rows))


def _profiles(document: Document, device: Device) -> dict[str, HardwareProfile]:
    """Option -> the profile with it; the empty name is the profile itself."""
    named = {"name": "measured", **document}
    options = ("", *dict.fromkeys(device.options.values()))
    return {option: build_profile(named, (option,) if option else (), "measured") for option in options}


def _option(bench: Bench, device: Device) -> str:
    return next((device.options[fmt] for fmt in bench.formats if fmt in device.options), "")


def _observation(bench: Bench, profile: HardwareProfile, timing: Timing) -> Observation:
    return Observation(bench.name, bench.name, profile, bench.workload, bench.executed, 1, timing.median_s)
