"""Times the evaluation of fully quantized candidates against the plain FP32 forward, and writes `speed.csv`.

    OMP_NUM_THREADS=1 python experiments/accuracy/speed.py [space ...]          # the four trained spaces; no GPU

A pair is one batch of the search split, once through the folded FP32 model and once through the candidate, in turns
that swap who goes first, scored as a search scores them. Ratios are medians of pairs with their quartiles, of wall and
of processor time: what else runs on the machine slows both halves of a pair, and bends processor time less.

FP32 runs three ways: on the very batches that the candidate gets (`ratio`), on the same samples in torch's usual order
of axes (`ratio_plain_layout`: what a user who thinks of no layout waits for), and against itself (`fp32` rows: how far
from 1 the method is).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from haq.doctor import check_up
from haq.nn.bundle import load_bundle
from haq.nn.calibrate import calibrate
from haq.nn.fold import fold_batch_norm
from haq.nn.simulate import Simulator
from haq.nn.task import Batch, ClassificationTask, Inputs
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.spacefile import load_space

HERE = Path(__file__).resolve().parent
SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
PRECISIONS = ("fp32/fp32", "int8/int8", "int4/int8")
PAIRS = 48
BUILDS = 21


@dataclass(frozen=True)
class Seconds:
    """How long one call took, by the clock and of the processor."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=SPACES)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="at least so many pairs for each row")
    parser.add_argument("--out", type=Path, default=HERE / "speed.csv")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    table = pd.DataFrame([row for space in options.spaces for row in rows(space, options.pairs)])
    table["threads"], table["torch"], table["cpu"] = torch.get_num_threads(), torch.__version__, check_up().cpu
    table["load_before"], table["load_after"] = load, os.getloadavg()[0]
    table.to_csv(options.out, index=False, lineterminator="\n", float_format="%.4g")
    print(table.to_string(index=False, float_format="%.4g"))


def rows(space: str, least: int) -> list[dict[str, object]]:
    """One row per precision."""
    bundle = load_bundle(load_space(space))
    assert isinstance(bundle.task, ClassificationTask), space
    folded = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(folded, bundle.example, name=space)
    simulator = Simulator(folded, workload, calibrate(folded, workload, bundle.task.calibration()), in_place=True)
    found = []
    for text in PRECISIONS:
        executed = Assignment.uniform(workload.layer_names, Precision.parse(text))
        candidate = simulator.build(executed)
        assembly = statistics.median(clocked(lambda: simulator.build(executed)).cpu for _ in range(BUILDS))  # noqa: B023
        row = {"space": space, "precision": text, **compared(folded, candidate, bundle.task, least)}
        found.append(row | {"assembly_s": assembly, "assembly_share": assembly / row["candidate_cpu_s"]})
        print(f"{space} {text}: {row['ratio']:.3f} of FP32, processor time {row['cpu_ratio']:.3f}", flush=True)
    return found


def compared(fp32: nn.Module, candidate: nn.Module, task: ClassificationTask, least: int) -> dict[str, float]:
    """Ratios over all pairs, and the seconds of one pass over the split: for each batch the median of its runs."""
    batches = task.splits["search"]
    alone = [replace(task, splits={"search": (batch,)}) for batch in batches]
    plain = [replace(task, splits={"search": (Batch(contiguous(b.inputs), b.labels),)}) for b in batches]
    pairs, seconds = [], [[] for _ in batches]
    for turn in range(1 + -(-least // len(batches))):
        for number in range(len(batches)):
            calls: list[Callable[[], object]] = [
                lambda n=number: alone[n].scores(fp32, "search"),
                lambda n=number: alone[n].scores(candidate, "search"),
                lambda n=number: plain[n].scores(fp32, "search"),
            ]
            order = (0, 1, 2) if turn % 2 else (2, 1, 0)
            took = {which: clocked(calls[which]) for which in order}
            if turn:  # the first one warms up
                pairs.append((took[0], took[1], took[2]))
                seconds[number].append((took[0], took[1]))
    whole = {
        f"{name}_{kind}_s": sum(statistics.median(getattr(run[which], kind) for run in runs) for runs in seconds)
        for which, name in enumerate(("fp32", "candidate"))
        for kind in ("wall", "cpu")
    }
    return {
        "samples": sum(len(batch.labels) for batch in batches),
        "pairs": len(pairs),
        **quartiles("ratio", [b.wall / a.wall for a, b, _ in pairs]),
        **quartiles("cpu_ratio", [b.cpu / a.cpu for a, b, _ in pairs]),
        "ratio_plain_layout": statistics.median(b.wall / c.wall for _, b, c in pairs),
        "cpu_ratio_plain_layout": statistics.median(b.cpu / c.cpu for _, b, c in pairs),
        **whole,
    }


def contiguous(inputs: Inputs) -> Inputs:
    """The same numbers in torch's usual order of axes."""
    if isinstance(inputs, dict):
        return {name: tensor.contiguous() for name, tensor in inputs.items()}
    return tuple(tensor.contiguous() for tensor in inputs)


def quartiles(name: str, values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}


def clocked(call: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    main()
