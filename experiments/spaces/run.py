"""Measure the shipped spaces in FP32: accuracy per split with its 95 % interval, and CPU seconds per evaluation.

    python experiments/spaces/run.py [SPACE ...]

Writes experiments/spaces/results.csv; rows of spaces that are not named stay. A space whose weights are not in the
cache is trained first. Seconds are processor time on one thread, the least of two passes over the split: unlike wall
clock it means something on a machine that does other work too. Two threads on two free cores take about half of it.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from haq.nn.bundle import load_bundle
from haq.spacefile import load_space

SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ("space", "split", "right", "samples", "accuracy", "low", "high", "cpu_seconds", "weights_hash", "data_hash")
PASSES = 2


def measure(name: str) -> list[dict[str, object]]:
    """One row per split."""
    bundle = load_bundle(load_space(name))
    assert bundle.task is not None, name
    rows: list[dict[str, object]] = []
    for split in ("search", "validation"):
        seconds = []
        for _ in range(PASSES):
            start = time.process_time()
            scores = np.asarray(bundle.task.scores(bundle.model, split))
            seconds.append(time.process_time() - start)
        right, samples = int(scores.sum()), len(scores)
        interval = binomtest(right, samples).proportion_ci(0.95, method="wilson")
        values = (
            name, split, right, samples, round(right / samples, 4), round(interval.low, 4), round(interval.high, 4),
            round(min(seconds), 2), bundle.weights_hash, bundle.data_hash,
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    kept: list[dict[str, object]] = []
    if RESULTS.is_file():
        with RESULTS.open(newline="") as file:
            kept = [dict(row) for row in csv.DictReader(file) if row["space"] not in names]
    rows = kept + [row for name in names for row in measure(name)]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (str(row["space"]), str(row["split"]))))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main(sys.argv[1:] or list(SPACES))
