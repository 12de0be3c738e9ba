"""Measure how much memory candidates out of the cache take, beside the FP32 model.

    python experiments/accuracy/memory.py

Writes experiments/accuracy/memory.csv. All layers are quantized at int4/int8 and int8/int8 into a cache on disk by one
process; another one, as a later search would, loads the model, runs FP32 and a first candidate on one calibration batch
(which sizes the workspaces of the kernels), and then twenty random mixtures. fp32_mb: the model's parameters;
grown_mb: anonymous memory that the twenty added; mapped_mb: how much more of the cache's files was in memory, which the
system takes back when it needs room; cache_mb: the cache on disk.
"""

from __future__ import annotations

import csv
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from goals import SPACES, W4A8, W8A8, subject, uniform

from haq.hardware.size import fp32_size_bytes
from haq.nn.prepare import Quantization, quantizable
from haq.nn.task import first_samples, forward
from haq.precision import Assignment

RESULTS = Path(__file__).parent / "memory.csv"
COLUMNS = ["space", "fp32_mb", "grown_mb", "mapped_mb", "cache_mb"]
CANDIDATES, SAMPLES = 20, 16


def fill(space: str, folder: Path) -> None:
    net = subject(space)
    simulator = quantizable(net.model, net.workload, tuple(net.task.calibration()), Quantization(folder=folder))
    for precision in (W4A8, W8A8):
        simulator.build(uniform(net.workload, precision))


def run(space: str, folder: Path) -> None:
    """Print one row."""
    net = subject(space)
    batches = tuple(net.task.calibration())
    few = first_samples(batches[0], SAMPLES)
    simulator = quantizable(net.model, net.workload, batches, Quantization(folder=folder))
    narrow = uniform(net.workload, W4A8)
    generator = random.Random(0)
    with torch.inference_mode():
        forward(net.model, few)
        forward(simulator.build(narrow), few)
        before = _held_mb("RssAnon"), _held_mb("RssFile")
        for _ in range(CANDIDATES):
            mixture = {n: p if p == W8A8 else generator.choice([W4A8, W8A8]) for n, p in narrow.entries}
            forward(simulator.build(Assignment.of(mixture)), few)
        after = _held_mb("RssAnon"), _held_mb("RssFile")
    cache = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    grown = [b - a for a, b in zip(before, after, strict=True)]
    print(space, *(f"{mb:.1f}" for mb in (fp32_size_bytes(net.workload) / 1e6, *grown, cache)), sep=",")


def _held_mb(what: str) -> float:
    match = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main() -> None:
    rows = []
    for space in SPACES:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("fill", "run"):
                command = [sys.executable, __file__, step, space, folder]
                out = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            rows.append(out.strip().split(","))
            print(*rows[-1], sep="\t", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


if __name__ == "__main__":
    if len(sys.argv) == 4:
        {"fill": fill, "run": run}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    else:
        main()
