"""This machine's CPU under ONNX Runtime, ready to be measured."""

from __future__ import annotations

from functools import partial

import onnxruntime

from haq.errors import InputError
from haq.measure import grid
from haq.measure.chain import Bench, Case
from haq.measure.cpu_profile import cpu_document, cpu_later
from haq.measure.device import Device, Streams, free_rates
from haq.measure.machine import this_machine
from haq.measure.onnx_graph import build
from haq.measure.ort import runner
from haq.measure.qdq import insert
from haq.measure.timing import Call

FLOAT, INTEGER = "fp32", "int8"
"""What ONNX Runtime multiplies on a CPU."""

USUAL_CACHE_BYTES = 32 * 2**20
"""Taken where the system does not tell of a cache."""

LARGEST_CACHE_BYTES = 64 * 2**20
"""A larger cache is not filled: it would take gigabytes of weights."""


def cpu(threads: int | None) -> Device:
    """The CPU with so many threads, all that this process may use unless given; raises InputError for too many."""
    machine = this_machine()
    used = machine.cores if threads is None else threads
    if not 1 <= used <= machine.cores:
        raise InputError("no such number of threads", where="--threads", got=used, expected=f"1 to {machine.cores}")
    cache = min(machine.last_cache_bytes or USUAL_CACHE_BYTES, LARGEST_CACHE_BYTES)
    runtime = f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider"
    return Device(
        title=f"{machine.cpu}, {f'{used} threads' if used > 1 else 'one thread'}",
        runtime=runtime,
        cases=cpu_cases(cache),
        streams=Streams(grid.streams(cache, paused=False), grid.streams(cache, paused=True), grid.smallest()),
        ready=partial(ready, threads=used),
        document=partial(cpu_document, machine, used, runtime),
        free=free_rates,
        later=cpu_later,
    )


def cpu_cases(cache_bytes: int) -> tuple[Case, ...]:
    """The grid in both formats, with weights that leave a cache of this size, and the changes between the formats."""
    both = (*grid.cases(FLOAT), *grid.cases(INTEGER))
    cold = (*grid.cold_cases(FLOAT, cache_bytes), *grid.cold_cases(INTEGER, cache_bytes))
    return (*both, *cold, *grid.convert_cases(FLOAT, INTEGER))


def ready(bench: Bench, threads: int) -> Call:
    """The bench as an ONNX model in a session of its own."""
    model = build(bench.workload)
    if INTEGER in bench.formats:
        layers = bench.workload.layer_names
        model = insert(model, {name: f == INTEGER for name, f in zip(layers, bench.formats, strict=True)})
    return runner(model, threads)
