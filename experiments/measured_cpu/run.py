"""Compares modelled with measured ONNX Runtime latency of networks that the profile of this machine has never seen.

    python experiments/measured_cpu/run.py [--profile FILE.toml] [--threads N] [--seconds S] [--networks A,B] ...

Measures the machine (or takes a profile that was measured before), exports each network to ONNX as haq folds it, runs
it in fp32, in int8 and with half of its layers in int8, and prices the same three assignments with the profile. No
network takes part in the fit. It takes about five minutes, in which nothing else should run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime
import pandas as pd
import torch
from networks import Network, network
from picture import draw

from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import HardwareProfile, load_profile
from haq.measure.machine import this_machine
from haq.measure.measure import measure, open_device
from haq.measure.ort import FLOAT_OPS, INTEGER_OPS, executed_ops, runner
from haq.measure.qdq import insert
from haq.measure.timing import Effort, Timing, time_all
from haq.measure.writer import write_profile
from haq.precision import Assignment

HERE = Path(__file__).resolve().parent
NETWORKS = ("resnet18", "mobilenet_v3_small", "reviews_minilm:128", "resnet50", "solar_efficientnet_lite0:3x224x224")
SEED, NARROW = 0, 8


@dataclass(frozen=True)
class Run:
    """One network in one config. bits: of every layer."""

    network: Network
    config: str
    bits: Assignment

    def model(self) -> onnx.ModelProto:
        """What ONNX Runtime is given: the exported model, with integer layers where the assignment has eight bits."""
        if self.config == "fp32":
            return self.network.model
        is_integer = {node: self.bits[layer] == NARROW for node, layer in self.network.layer_of.items()}
        return insert(self.network.model, is_integer)

    def narrow_products(self) -> int:
        """How many integer products ONNX Runtime is asked for; a look-up is none."""
        kinds = {layer.name: layer.kind for layer in self.network.workload.layers}
        return sum(self.bits[x] == NARROW and kinds[x] != "embedding" for x in self.network.layer_of.values())


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    threads = options.threads or this_machine().cores
    profile = load_profile(str(options.profile or measured(options.out, threads, options.seconds)))
    runs = [run for name in options.networks.split(",") for run in configs(network(name))]
    timings = time_all([runner(run.model(), threads) for run in runs], Effort(options.seconds_per_network, rounds=4))
    rows = pd.DataFrame([row(run, timing, profile, threads) for run, timing in zip(runs, timings, strict=True)])
    rows.to_csv(options.out / "results.csv", index=False, lineterminator="\n")
    machine = {**machine_facts(), "threads": threads}
    (options.out / "machine.json").write_text(json.dumps(machine, indent=2) + "\n")
    for run in runs:
        if run.config == "mixed":
            path = options.out / f"{run.network.name.partition(':')[0]}_mixed.json"
            path.write_text(json.dumps(run.bits.to_json(), indent=1) + "\n")
    draw(rows, f"{profile.title}, ONNX Runtime {onnxruntime.__version__}", options.out / "measured_modelled.png")
    print(rows.drop(columns=["batch", "repeats"]).to_string(index=False))
    print(f"largest error {rows.error_percent.abs().max():.1f} %, mean {rows.error_percent.abs().mean():.1f} %")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="a profile of this machine, measured before with as many threads")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=120.0, help="for the kernels of the profile")
    parser.add_argument("--seconds-per-network", type=float, default=2.0, help="timed calls of each config")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def measured(out: Path, threads: int, seconds: float) -> Path:
    """This machine's profile, measured now."""
    path = out / "this_machine.toml"
    found = measure(open_device("cpu", threads), seconds, lambda done, total: None)
    write_profile(path, found, datetime.date.today())
    if found.others is not None:
        print(f"other programs took {100 * found.others:.1f} % of the cores while the kernels were timed")
    return path


def configs(found: Network) -> Iterator[Run]:
    """fp32, int8, and half of the layers, drawn with a fixed seed, in int8."""
    names = found.workload.layer_names
    half = frozenset(random.Random(SEED).sample(names, len(names) // 2))
    for config, narrow in (("fp32", frozenset()), ("int8", frozenset(names)), ("mixed", half)):
        yield Run(found, config, Assignment.of({name: NARROW if name in narrow else 32 for name in names}))


def row(run: Run, timing: Timing, profile: HardwareProfile, threads: int) -> Mapping[str, object]:
    """One line of results.csv: measured, and modelled with and without the table of kernels."""
    ops = executed_ops(run.model(), threads)
    integer, floats = (sum(ops[op] for op in kinds) for kinds in (INTEGER_OPS, FLOAT_OPS))
    wanted = run.narrow_products()
    assert integer == wanted, f"{run.network.name} {run.config}: {integer} integer kernels in the graph, {wanted} asked"
    plain = profile.model_copy(update={"lookup": None})
    measured_ms, modelled_ms = 1e3 * timing.median_s, latency_ms(run, profile)
    return {
        "model": run.network.name,
        "config": run.config,
        "batch": 1,
        "measured_ms": round(measured_ms, 4),
        "noise": round(timing.noise, 4),
        "repeats": timing.repeats,
        "modelled_ms": round(modelled_ms, 4),
        "error_percent": round(100 * (modelled_ms / measured_ms - 1), 2),
        "plain_ms": round(latency_ms(run, plain), 4),
        "plain_error_percent": round(100 * (latency_ms(run, plain) / measured_ms - 1), 2),
        "layers": len(run.network.layer_of),
        "integer_nodes": integer,
        "float_nodes": floats,
    }


def latency_ms(run: Run, profile: HardwareProfile) -> float:
    executed = legalize(run.network.workload, run.bits, profile).executed
    return estimate(run.network.workload, executed, profile, batch=1).latency_ms


def machine_facts() -> Mapping[str, object]:
    found = this_machine()
    return {
        **{key: value for key, value in asdict(found).items() if key != "flags"},
        "avx512_vnni": "avx512_vnni" in found.flags,
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
