"""Times the cost table against the slow path and against the number of layers, and writes `results.csv`.

    OMP_NUM_THREADS=1 python experiments/cost_table/run.py          # on an idle machine; no weights, no data

One process, one thread: nothing here starts another. Each time is the median of REPEATS runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from haq.doctor import check_up
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile, load_profile
from haq.hardware.table import CostTable, cost_table
from haq.precision import BIT_WIDTHS, Assignment
from haq.spacefile import load_space
from haq.tracecache import workload_of
from haq.workload import Gemm, GlueOp, LayerSpec, WeightSpec, Workload

HERE = Path(__file__).resolve().parent
TARGETS = ("a100", "mobile", "tpu-v4")
POPULATIONS = (100_000, 1_000_000)
COMPARED = 200
REPEATS = 5


def main() -> None:
    asked = [(workload_of(load_space("resnet50")), count) for count in POPULATIONS]
    asked.append((workload_of(load_space("bert_large")), POPULATIONS[0]))
    asked += [(chain(count), POPULATIONS[0]) for count in (125, 250, 500, 1000)]
    table = pd.DataFrame([measured(net, target, count) for net, count in asked for target in TARGETS])
    machine = check_up()
    table["cpu"], table["cores"], table["threads"], table["load_before"] = machine.cpu, machine.cores_usable, 1, LOAD
    table.to_csv(HERE / "results.csv", index=False, lineterminator="\n", float_format="%.4g")
    print(table.to_string(index=False, float_format="%.4g"))


def chain(count: int) -> Workload:
    """`count` 3x3 convolutions of 64 channels on 14 x 14, each with a relu, and a shortcut around every second one."""
    shape, nodes, source, before = (64, 14, 14), [], "x", "x"
    for i in range(count):
        nodes.append(
            LayerSpec(
                f"conv{i}", "conv2d", (source,), (shape,), shape, 64 * 576 * 196, Gemm(196, 64, 576, 1),
                WeightSpec(f"conv{i}.weight", (64, 64, 3, 3), 0), 64,
            )
        )  # fmt: skip
        last = f"conv{i}"
        if i % 2:
            nodes.append(GlueOp(f"add{i}", "add", (last, before), (shape, shape), shape))
            last = before = f"add{i}"
        nodes.append(GlueOp(f"relu{i}", "activation", (last,), (shape,), shape))
        source = f"relu{i}"
        before = source if i % 2 else before
    return Workload(f"chain{count}", (("x", shape),), tuple(nodes), (source,))


def measured(net: Workload, target: str, count: int) -> dict[str, object]:
    """One line of the results: `count` random candidates by table, some of them by the slow path, and the building."""
    profile = load_profile(target)
    table = cost_table(net, profile, batch=1)
    levels = np.random.default_rng(0).integers(0, len(BIT_WIDTHS), (count, len(net.layers)), dtype=np.uint8)
    table_s = median_s(lambda: table.price(levels)) / count
    started = time.perf_counter()
    slow = [slow_figures(net, profile, row) for row in levels[:COMPARED]]
    slow_s = (time.perf_counter() - started) / COMPARED
    return {
        "network": net.name,
        "layers": len(net.layers),
        "target": target,
        "candidates": count,
        "candidates_per_s": 1 / table_s,
        "ns_per_candidate_and_layer": 1e9 * table_s / len(net.layers),
        "slow_candidates_per_s": 1 / slow_s,
        "times_faster": slow_s / table_s,
        "max_relative_difference": difference(table, levels[:COMPARED], slow),
        "building_s": median_s(lambda: cost_table(net, profile, batch=1)),
    }


def slow_figures(net: Workload, profile: HardwareProfile, levels: np.ndarray) -> dict[str, float]:
    """What the search did for every candidate: legalize, then add up the layers."""
    asked = Assignment.of(dict(zip(net.layer_names, (BIT_WIDTHS[level] for level in levels), strict=True)))
    return estimate(net, legalize(net, asked, profile).executed, profile, batch=1).figures()


def difference(table: CostTable, levels: np.ndarray, slow: list[dict[str, float]]) -> float:
    """The largest relative difference of any figure of any candidate."""
    priced = table.price(levels)
    pairs = [(priced.row(i), expected) for i, expected in enumerate(slow)]
    assert all(found.keys() == expected.keys() for found, expected in pairs)
    return max(abs(found[name] / expected[name] - 1) for found, expected in pairs for name in expected)


def median_s(call: Callable[[], object]) -> float:
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


LOAD = os.getloadavg()[0]

if __name__ == "__main__":
    main()
