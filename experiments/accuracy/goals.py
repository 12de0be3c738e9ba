"""Measure the default stack against the accuracy that was asked of it, on the search and the validation split.

    python experiments/accuracy/goals.py [SPACE ...]

Writes experiments/accuracy/goals.csv; rows of spaces that are not named stay. Nothing is chosen on validation: the
stack is haq's default, and `mixed` is W4A8 with the layers widened to int8/int8 that gain most KL divergence per byte
on the calibration data, as long as the model stays FLOOR smaller than FP32. W4A8 is int4/int8 in every convolution and
linear layer (attention products and embeddings int8). `nearest` rounds within the largest magnitude, without a stack.
seconds: to calibrate and quantize the whole network with an empty cache (W8A8: to quantize it only). One thread.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from haq.accuracy import compare
from haq.hardware.size import fp32_size_bytes, size_bytes
from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.metrics import all_scores
from haq.nn.prepare import Quantization, quantizable
from haq.nn.simulate import Simulator
from haq.nn.task import ClassificationTask, forward, logits_of
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.spacefile import load_space
from haq.techniques import Stack
from haq.workload import Workload

SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
FLOOR = 0.81
RESULTS = Path(__file__).parent / "goals.csv"
COLUMNS = ["space", "config", "split", "samples", "smaller_percent", "accuracy", "drop_points", "drop_low", "drop_high"]
COLUMNS += ["agreement", "kl_nats", "seconds"]
W4A8, W8A8 = Precision.parse("int4/int8"), Precision.parse("int8/int8")


@dataclass(frozen=True, eq=False)
class Subject:
    """One trained network."""

    name: str
    task: ClassificationTask
    model: nn.Module
    workload: Workload


def subject(space: str) -> Subject:
    bundle = load_bundle(load_space(space))
    assert isinstance(bundle.task, ClassificationTask)
    model = fold_batch_norm(bundle.model, bundle.example)
    return Subject(space, bundle.task, model, trace(model, bundle.example, name=space))


def uniform(workload: Workload, precision: Precision) -> Assignment:
    return Assignment.of(
        {layer.name: W8A8 if layer.kind in ("embedding", "matmul") else precision for layer in workload.layers}
    )


def mixed(net: Subject, simulator: Simulator) -> Assignment:
    """W4A8 with as many layers widened as fit under the size, those first that gain most per byte."""
    narrow = uniform(net.workload, W4A8)
    base = _divergence(net, simulator.build(narrow))
    gains = {}
    for layer, precision in narrow.entries:
        if precision == W4A8:
            wider = Assignment.of({**narrow, layer: W8A8})
            more = size_bytes(net.workload, wider) - size_bytes(net.workload, narrow)
            gains[layer] = (base - _divergence(net, simulator.build(wider))) / more
    chosen = dict(narrow)
    for layer in sorted(gains, key=lambda name: -gains[name]):
        trial = Assignment.of({**chosen, layer: W8A8})
        if gains[layer] > 0 and _smaller(net.workload, trial) >= FLOOR:
            chosen[layer] = W8A8
    return Assignment.of(chosen)


def measure(space: str) -> Iterator[dict[str, str]]:
    net = subject(space)
    batches = tuple(net.task.calibration())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        simulator = quantizable(net.model, net.workload, batches, Quantization(folder=Path(folder)))
        simulator.build(uniform(net.workload, W4A8))
        seconds = {"W4A8": time.perf_counter() - start}
        start = time.perf_counter()
        simulator.build(uniform(net.workload, W8A8))
        seconds["W8A8"] = time.perf_counter() - start
        nearest = quantizable(net.model, net.workload, batches, Quantization(Stack.of(["bn_fold"])))
        models = {
            "W8A8": (simulator, uniform(net.workload, W8A8)),
            "W4A8": (simulator, uniform(net.workload, W4A8)),
            "mixed": (simulator, mixed(net, simulator)),
            "W4A8 nearest": (nearest, uniform(net.workload, W4A8)),
        }
        for split in ("search", "validation"):
            exact = net.task.outputs(net.model, split)
            reference = all_scores(exact, exact)
            for config, (source, executed) in models.items():
                scores = all_scores(net.task.outputs(source.build(executed), split), exact)
                m = compare(reference["top-1 accuracy"], scores["top-1 accuracy"], split)
                assert m.drop_interval is not None
                values = [space, config, split, str(m.samples), f"{100 * _smaller(net.workload, executed):.1f}"]
                numbers = (m.accuracy, m.drop_points, m.drop_interval.low, m.drop_interval.high)
                values += [f"{n:.4f}" for n in (*numbers, scores["agreement"].mean())] + [f"{scores['kl'].mean():.6f}"]
                values += [f"{seconds[config]:.1f}" if config in seconds else ""]
                print(*values, sep="\t", flush=True)
                yield dict(zip(COLUMNS, values, strict=True))


def _smaller(workload: Workload, executed: Assignment) -> float:
    return 1 - size_bytes(workload, executed) / fp32_size_bytes(workload)


def _divergence(net: Subject, model: nn.Module) -> float:
    """Mean KL(FP32 || model) on the calibration data, in nats."""
    with torch.inference_mode():
        exact, found = (
            torch.cat([logits_of(forward(m, inputs)) for inputs in net.task.calibration()]).log_softmax(dim=1)
            for m in (net.model, model)
        )
    return float(nn.functional.kl_div(found, exact, log_target=True, reduction="batchmean"))


def main(spaces: list[str]) -> None:
    torch.set_num_threads(1)
    for space in spaces:
        found = list(measure(space))
        kept = [row for row in _read() if row["space"] != space]
        rows = sorted(kept + found, key=lambda row: SPACES.index(row["space"]))
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(sys.argv[1:] or list(SPACES))
