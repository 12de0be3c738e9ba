"""Turns timed benches into a table: what each comparison singled out, measured against the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from haq.hardware.cost import convert_cost, estimate, plan
from haq.hardware.likeness import of_change, of_kernel
from haq.hardware.lookup import Likeness, Row
from haq.hardware.roofline import kernel_cost
from haq.hardware.schema import HardwareProfile
from haq.measure.chain import Bench, Case
from haq.measure.timing import Timing
from haq.precision import FP32

FARTHEST = 30.0
"""The largest ratio that a row may have, either way: what another kernel absorbs leaves only noise."""


def rows_of(case: Case, timings: Mapping[Bench, Timing], profile: HardwareProfile) -> Iterator[Row]:
    """One row per kind of kernel or change of format that the case singles out. profile: without a table."""
    parts: dict[Likeness, list[float]] = {}
    for likeness, time_us in _changes(case, profile) if not case.nodes else _kernels(case, profile):
        parts.setdefault(likeness, []).append(time_us)
    modelled_us = sum(map(sum, parts.values()))
    if modelled_us <= 0:
        return  # the model says that another kernel absorbs it, and so does the difference
    difference, error_us = difference_us(case, timings)
    measured_us = difference - (_modelled_difference_us(case, profile) - modelled_us)
    ratio = min(max(measured_us / modelled_us, 1 / FARTHEST), FARTHEST)
    for likeness, times in parts.items():
        each = sum(times) / len(times)
        if each > 0:
            yield Row(case.name, likeness, each * ratio, each, error_us / (ratio * modelled_us))


def _modelled_difference_us(case: Case, profile: HardwareProfile) -> float:
    """What the model says that the case takes longer than the benches that it is compared with."""
    terms = [(1.0, case.longer), *((-weight, bench) for weight, bench in case.minus)]
    return 1e3 * sum(w * estimate(b.workload, b.executed, profile, batch=1).latency_ms for w, b in terms)


def _kernels(case: Case, profile: HardwareProfile) -> Iterator[tuple[Likeness, float]]:
    kernels, setting = plan(case.longer.workload, profile, 1)
    executed = case.longer.executed
    for kernel in kernels:
        if kernel.name in case.nodes:
            precision = executed.precision(kernel.anchor) if kernel.anchor else FP32
            cost = kernel_cost(kernel, precision, setting)
            yield of_kernel(kernel, precision, setting), 1e3 * cost.latency_ms


def _changes(case: Case, profile: HardwareProfile) -> Iterator[tuple[Likeness, float]]:
    kernels, setting = plan(case.longer.workload, profile, 1)
    executed = case.longer.executed
    for kernel in kernels:
        for read in kernel.reads:
            if read.source is None or kernel.anchor is None:
                continue
            writer = kernels[read.source]
            assert writer.anchor is not None
            formats = (executed.precision(writer.anchor).activation, executed.precision(kernel.anchor).activation)
            cost = convert_cost(read, writer, kernel.name, formats, setting)
            if cost is not None:
                yield of_change(read, writer, formats, setting), 1e3 * cost.latency_ms


def difference_us(case: Case, timings: Mapping[Bench, Timing]) -> tuple[float, float]:
    """What the case takes longer than the benches that it is compared with, and one deviation of that."""
    terms = [(1.0, case.longer), *((-weight, bench) for weight, bench in case.minus)]
    total = sum(weight * timings[bench].median_s for weight, bench in terms)
    variance = sum((weight * timings[bench].error_s) ** 2 for weight, bench in terms)
    return 1e6 * total, 1e6 * math.sqrt(variance)
