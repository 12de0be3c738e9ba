"""Plants the faults of `cases.py` in real networks, diagnoses each, and says what was found.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/diagnose/run.py [SPACE ...] [--judged 256]

Writes results/detection_<space>.csv, one row per case; a stopped run goes on with the cases that have no row. All
figures are *measured* (search split: 64 samples looked at, others judged) but for those of cost faults, which are
modelled. `confusion.py` makes the tables of it. harm: KL divergence over the healthy int8 network's, paired.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import MEASURABLE_NATS, MEASURABLE_SHARE, SPACES, TARGETS, Case, cases
from networks import Network, bench_of, open_network, planted
from rows import append

from haq.diagnose.cost_faults import plant_no_speedup, plant_not_executed
from haq.diagnose.costs import CostEvidence
from haq.diagnose.detectors import COST_DETECTORS
from haq.diagnose.effects import regained
from haq.diagnose.examine import cost_findings, diagnose
from haq.diagnose.finding import Change, Diagnosis, Finding, Outcome
from haq.errors import InputError
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.table import cost_table
from haq.nn.diagnosis.faults import touched
from haq.precision import Assignment

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = [
    "case", "base", "modes", "layers", "strengths", "target", "harm_nats", "harm_low", "harm_high", "harm_points",
    "measurable", "right_layers", "found", "right", "false_modes", "explained", "tried", "forwards", "seconds", "note",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spaces", nargs="*", default=SPACES)
    parser.add_argument("--judged", type=int, default=256)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for space in asked.spaces:
        network = open_network(space, asked.judged)
        run(network, asked.only)


def run(network: Network, only: str) -> None:
    """Every case of a network that has no row yet."""
    file = RESULTS / f"detection_{network.space}.csv"
    done = {row["case"] for row in csv.DictReader(file.open())} if file.is_file() else set()
    healthy = bench_of(network, network.subject)[0].measure(Change())
    profiles = {name: load_profile(name) for name in TARGETS}
    for case in cases(network.space, network.subject, profiles):
        if (case.name in done and not only) or only not in case.name:
            continue
        started = time.perf_counter()
        row = of_cost(network, case) if case.target else of_accuracy(network, case, healthy)
        row |= {"seconds": f"{time.perf_counter() - started:.1f}"}
        if only:
            print({key: value for key, value in row.items() if value != ""}, flush=True)
        else:
            append(file, COLUMNS, [row])


def about(case: Case) -> dict[str, Any]:
    return {
        "case": case.name, "base": case.base, "modes": " + ".join(case.modes), "layers": " + ".join(case.layers),
        "strengths": " + ".join(f"{s:g}" for s in case.strengths), "target": case.target,
    }  # fmt: skip


def of_accuracy(network: Network, case: Case, healthy: Outcome) -> dict[str, Any]:
    """A fault of accuracy, or none: planted, measured, and diagnosed if it does measurable harm."""
    try:
        subject = planted(network, case)
    except InputError as error:
        return {**about(case), "measurable": False, "note": str(error)}
    bench, evidence = bench_of(network, subject)
    outcome = bench.measure(Change())
    harm = regained(outcome, healthy)
    assert harm.nats is not None
    assert harm.nats_interval is not None
    assert outcome.kl is not None
    broken = not np.isfinite(outcome.kl).all()
    measurable = broken or (harm.nats >= MEASURABLE_NATS and harm.nats_interval.low > 0)
    row = {
        **about(case), "harm_nats": f"{harm.nats:.5f}", "harm_low": f"{harm.nats_interval.low:.5f}",
        "harm_high": f"{harm.nats_interval.high:.5f}", "harm_points": f"{harm.points:.2f}", "measurable": measurable,
    }  # fmt: skip
    if case.modes and not measurable:
        return row
    found = diagnose(bench, evidence, None)
    sets = [touched(network.subject, mode, layer) for mode, layer in zip(case.modes, case.layers, strict=True)]
    return {**row, **verdict(case, found, sets)}


def of_cost(network: Network, case: Case) -> dict[str, Any]:
    """A fault of cost: planted in what is asked of the target, priced and judged by the cost model."""
    (mode,), (layer,), (strength,) = case.modes, case.layers, case.strengths
    workload, profile = network.subject.workload, load_profile(case.target)
    before = Assignment.uniform(workload.layer_names, 8 if mode == "not-executed" else 16)
    plant = plant_not_executed if mode == "not-executed" else plant_no_speedup
    asked = plant(workload, before, profile, layer, int(strength))
    runs = legalize(workload, asked, profile).executed
    costs = CostEvidence(workload, asked, runs, profile, 1, cost_table(workload, profile, batch=1))
    priced = [s for detect in COST_DETECTORS.values() for s in detect(costs)]
    found = [finding.suspicion for finding in cost_findings(priced)]
    changed = {name for name in workload.layer_names if asked[name] != before[name]}
    right = [s for s in found if s.mode == mode and changed.intersection((s.layer, *s.layers))]
    harm = harm_of_cost(costs, legalize(workload, before, profile).executed, mode)
    return {
        **about(case), "measurable": harm >= MEASURABLE_SHARE, "right_layers": " ".join(sorted(changed)),
        "found": "; ".join(f"{s.mode}@{s.layer}" for s in found), "right": bool(right),
        "false_modes": " ".join(sorted({s.mode for s in found} - {mode})), "note": f"figures change by {harm:.2%}",
    }  # fmt: skip


def harm_of_cost(costs: CostEvidence, before: Assignment, mode: str) -> float:
    """The largest share of a modelled figure that the fault costs, by the rule of `cases.py`."""
    if mode == "no-speedup":
        healthy = estimate(costs.workload, before, costs.profile, batch=costs.batch).latency_ms
        return costs.now.latency_ms / healthy - 1
    gaps = list(costs.gaps())
    sized = costs.saved_bytes({gap.layer.name: gap.asked for gap in gaps}) / costs.now.size_bytes
    return max(sized, float(costs.as_asked_ms(gaps).sum()) / costs.now.latency_ms)


def verdict(case: Case, found: Diagnosis, sets: list[tuple[str, ...]]) -> dict[str, Any]:
    """Whether each planted fault is among the findings, and which modes are that were not planted."""
    hits = [
        any(f.mode == mode and at(f, right) for f in found.findings)
        for mode, right in zip(case.modes, sets, strict=True)
    ]
    share = found.explained.nats / found.lost.nats if found.lost.nats else 1.0
    planted_at = list(zip(case.modes, sets, strict=True))
    wrong = {f.mode for f in found.findings if not any(f.mode == mode and at(f, right) for mode, right in planted_at)}
    return {
        "right_layers": " + ".join(" ".join(right) for right in sets),
        "found": "; ".join(f"{f.mode}@{f.layer} {f.effect.nats:.4f}" for f in found.findings),
        "right": all(hits) if case.modes else "", "false_modes": " ".join(sorted(wrong)),
        "explained": f"{share:.3f}", "forwards": f"{found.forwards:.0f}",
    }  # fmt: skip


def at(finding: Finding, layers: tuple[str, ...]) -> bool:
    """Whether the finding names one of the layers."""
    return bool(set(layers).intersection((finding.layer, *finding.suspicion.layers)))


if __name__ == "__main__":
    main()
