"""What `haq.monitor` costs a service: the same loop with and without it, in turns, written as monitor.csv.

    python experiments/diagnose/monitor.py --config CONFIG.json

CONFIG: of mnist_resnet18, as `haq export --format json` writes it. Each row is a share of calls that are looked at; the
ratio is of the medians over rounds of processor time, in which the plain loop and the watched ones take turns, so that
what else runs on the machine hits all alike. Batch 1 is the dearest case: hooks cost the same for any batch.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch

import haq
from haq.nn.bundle import load_bundle
from haq.spacefile import load_space

SAMPLES = (None, 0.0, 0.01, 0.1, 1.0)
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(load_space("mnist_resnet18"))
    networks = {"quantized": haq.load(chosen.config, bundle.model), "fp32": bundle.model}
    inputs = torch.cat([batch.inputs[0] for batch in bundle.task.splits["search"]])
    rows = []
    for name, network in networks.items():
        for batch in (1, 32):
            calls = chosen.calls if batch == 1 else max(1, chosen.calls // 8)
            rows += measure(name, network, inputs[: batch * calls].split(batch), chosen)
    with (HERE / "monitor.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def measure(name: str, network: torch.nn.Module, batches: tuple[torch.Tensor, ...], chosen: argparse.Namespace) -> list:
    """One row per share of calls: milliseconds of processor time a call, and over the plain loop."""
    seconds: dict[float | None, list[float]] = {sample: [] for sample in SAMPLES}
    for number in range(chosen.rounds):
        for sample in SAMPLES:
            watch = nullcontext() if sample is None else haq.monitor(network, chosen.config, sample, seed=number)
            with watch, torch.inference_mode():
                started = time.process_time()
                for batch in batches:
                    network(batch)
                seconds[sample].append((time.process_time() - started) / len(batches))
    plain = statistics.median(seconds[None])
    return [
        {
            "network": name,
            "batch": len(batches[0]),
            "sample": "no monitor" if sample is None else sample,
            "cpu_ms_per_call": round(1e3 * statistics.median(taken), 4),
            "ratio": round(statistics.median(taken) / plain, 4),
            "calls": chosen.rounds * len(batches),
        }
        for sample, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
