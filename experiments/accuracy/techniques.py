"""Measure what each post-training technique gains, alone and in the default stack, on four trained networks.

    python experiments/accuracy/techniques.py [--again] [SPACE ...]

Writes experiments/accuracy/techniques.csv row by row and goes on where it was stopped; --again measures the named
spaces anew. Everything is measured on the search
split (quantizers are fitted on calibration); the validation split is not looked at here. W4A8 is int4/int8 in every
convolution, linear layer and attention product (whose operands are int8), W8A8 int8/int8; embeddings, where there are
any, are int8. `alone` adds one technique to rounding to nearest within the largest magnitude; `stack` changes one thing
about the default stack. seconds and cpu_seconds: to quantize the whole calibrated network with an empty cache, inputs
measured included; memory_mb: by how much that raised the process's peak. One thread.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock

from haq.accuracy import compare
from haq.nn.bundle import load_bundle
from haq.nn.calibrate import calibrate
from haq.nn.fold import fold_batch_norm
from haq.nn.metrics import all_scores
from haq.nn.ptq.structure import restructured
from haq.nn.simulate import Simulator
from haq.nn.task import ClassificationTask
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.scaling import Scaling
from haq.spacefile import load_space
from haq.techniques import DEFAULT_STACK, Stack
from haq.workload import Workload

SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
RESULTS = Path(__file__).parent / "techniques.csv"
KEY = ("space", "bits", "case", "technique", "stack", "observer")
COLUMNS = [*KEY, "samples", "accuracy", "drop_points"]
COLUMNS += ["drop_low", "drop_high", "agreement", "kl_nats", "loss", "seconds", "cpu_seconds", "memory_mb"]
ALONE = {
    8: ("mse", "output_mse", "bias_correction", "bn_reestimation", "cle", "smoothquant", "per_token"),
    4: ("mse", "output_mse", "hqq", "gptq", "quantease", "bias_correction", "bn_reestimation", "cle", "smoothquant",
        "group_64", "per_token"),
}  # fmt: skip
SWAPS = {
    8: {"output_mse": ("mse",), "bn_reestimation": ("", "bias_correction")},
    4: {
        "output_mse": ("minmax", "mse", "hqq"),
        "gptq": ("", "quantease", "adaround"),
        "bn_reestimation": ("", "bias_correction"),
    },
}
ADDED = {8: (), 4: ("cle", "smoothquant", "group_64", "per_token")}
OBSERVERS = {8: ("minmax", "percentile", "entropy"), 4: ()}


@dataclass(frozen=True)
class Case:
    """One row: how the network is quantized, and what is special about that."""

    kind: str
    technique: str
    stack: Stack
    observer: str = "mse"


def cases(bits: int) -> Iterator[Case]:
    yield Case("alone", "none", Stack.of(["bn_fold"]))
    for name in ALONE[bits]:
        yield Case("alone", name, Stack.of(["bn_fold", name]))
    yield Case("stack", "default", Stack())
    for old, others in SWAPS[bits].items():
        for new in others:
            names = [new if name == old else name for name in DEFAULT_STACK]
            yield Case("stack", f"{old} -> {new or 'none'}", Stack.of([name for name in names if name]))
    for name in ADDED[bits]:
        yield Case("stack", f"+ {name}", Stack.of([*DEFAULT_STACK, name]))
    for observer in OBSERVERS[bits]:
        yield Case("stack", f"observer {observer}", Stack(), observer)


def assignment(workload: Workload, bits: int, stack: Stack) -> Assignment:
    """W4A8 or W8A8 with the scales that the stack asks for; embeddings int8."""
    scaling = Scaling.of(stack.names)
    narrow = Precision.parse(f"int{bits}/int8")
    wide = Precision.parse("int8/int8")
    return Assignment.of(
        {layer.name: scaling.asked(layer, wide if layer.kind in ("embedding", "matmul") else narrow)
         for layer in workload.layers}
    )  # fmt: skip


def measure(space: str, known: set[tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """The rows that are not known yet; a row is known by the columns of KEY."""
    bundle = load_bundle(load_space(space))
    task = bundle.task
    assert isinstance(task, ClassificationTask)
    model = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(model, bundle.example, name=space)
    batches = tuple(task.calibration())
    exact = task.outputs(model, "search")
    plain = calibrate(model, workload, batches)
    for bits in (8, 4):
        for case in cases(bits):
            described = [space, f"W{bits}A8", case.kind, case.technique, str(case.stack), case.observer]
            if tuple(described) in known:
                continue
            changed = restructured(model, workload, case.stack, batches)
            calibration = plain if changed is model else calibrate(changed, workload, batches)
            calibration = replace(calibration, stack=case.stack, observer=case.observer)
            before, start, cpu = _reset_peak(), time.perf_counter(), time.process_time()
            simulator = Simulator(changed, workload, calibration, in_place=True)
            built = simulator.build(assignment(workload, bits, case.stack))
            spent = time.perf_counter() - start, time.process_time() - cpu, _peak_mb() - before
            outputs = task.outputs(built, "search")
            scores, reference = all_scores(outputs, exact), all_scores(exact, exact)
            m = compare(reference["top-1 accuracy"], scores["top-1 accuracy"], "search")
            assert m.drop_interval is not None
            means = [float(scores[name].mean()) for name in ("agreement", "kl", "loss")]
            numbers = (m.accuracy, m.drop_points, m.drop_interval.low, m.drop_interval.high, means[0])
            values = [*described, str(m.samples)]
            values += [f"{n:.4f}" for n in numbers] + [f"{n:.6f}" for n in means[1:]] + [f"{n:.1f}" for n in spent]
            print(*values, sep="\t", flush=True)
            yield dict(zip(COLUMNS, values, strict=True))


def _reset_peak() -> float:
    """Forget the process's peak; returns what it holds now, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main(spaces: list[str], *, again: bool) -> None:
    torch.set_num_threads(1)
    for space in spaces:
        kept = [row for row in _read() if not (again and row["space"] == space)]
        _write(kept)
        for row in measure(space, {tuple(row[name] for name in KEY) for row in kept}):
            with FileLock(f"{RESULTS}.lock"):  # another process may be measuring another space
                _write([*_read(), row])


def _write(rows: list[dict[str, str]]) -> None:
    order = {
        (space, f"W{bits}A8", case.kind, case.technique): (place, -bits, number)
        for place, space in enumerate(SPACES)
        for bits in (8, 4)
        for number, case in enumerate(cases(bits))
    }
    listed = [row for row in rows if tuple(row[name] for name in KEY[:4]) in order]
    listed.sort(key=lambda row: order[tuple(row[name] for name in KEY[:4])])
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main([name for name in arguments if name != "--again"] or list(SPACES), again="--again" in arguments)
