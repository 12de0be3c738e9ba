"""Buys back what the faults of `cases.py` cost, and prices it beside NNCF's way (`by_metric.py`).

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/diagnose/recovery.py [SPACE ...] [--judged 256]

Writes results/recovery_<space>.csv, one row per case and target; a stopped run goes on with the cases that have no row.
Cases: the single faults of accuracy that results/detection_<space>.csv calls measurable. `--fallbacks-only`: the
natural fault instead, all layers int4/int8 rounded to nearest (bn_fold, minmax), no free repairs allowed; writes
results/fallbacks.csv, where `metric8` is NNCF's way to the first wider rung (int8) alone.

Limit. A recovery may drop as many points under FP32 as the healthy int8 network does on the same judged samples (none
where that is better than FP32), and SLACK_POINTS: less than one of 256 samples. `--fallbacks-only` also takes wider
ones: LIMITS.
Lost. Points: under what the limit asks for without the slack, so the lower of FP32 and healthy int8. Shares of less
than one point are noise and are left out. Nats: mean divergence from FP32 over the healthy network's. A case that holds
the limit as it is needs no recovery; its share in nats is left out too, and `explained` says what its findings regain.
`raise_*`: `haq recover` without free repairs, so that its choice of layers is compared with NNCF's (`metric_*`).
Price. What is added, modelled: milliseconds, bytes, and `price`, both relative to now, added up (what recover
minimizes). drop, points, nats: measured. forwards, seconds: of diagnosis and recovery on the first target; the second
one finds most of it measured, as does NNCF's way, whose distinct networks are counted in `metric_networks`.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from by_metric import by_metric
from cases import SPACES, TARGETS, Case, cases
from networks import Network, bench_of, open_network, planted, version
from rows import append

from haq.allocate import Levels
from haq.diagnose.climb import Climb
from haq.diagnose.effects import regained
from haq.diagnose.examine import diagnose
from haq.diagnose.finding import Change, Diagnosis, Effect, Outcome
from haq.diagnose.recover import BOTH, recover
from haq.diagnose.recovery import Limits, Point
from haq.diagnose.rungs import Pricing, pricing
from haq.diagnose.strengths import STRENGTHS
from haq.errors import InputError
from haq.hardware.profile import load_profile
from haq.nn.diagnosis.bench import TorchBench, open_bench
from haq.nn.diagnosis.subject import subject_of
from haq.precision import Precision

RESULTS = Path(__file__).resolve().parent / "results"
PRICED = ("reference", "a100")
"""The targets, the second where it executes what runs now."""
SLACK_POINTS = 0.2
LIMITS = (0.0, 1.0, 3.0)
"""Points beyond the limit of the rule, for the natural fault."""
NATURAL = ("mnist_resnet18", "solar_efficientnet_lite0")
FIELDS = ("met", "drop", "price", "added_ms", "added_bytes", "raised")
COLUMNS = [
    "case", "target", "judged", "limit", "drop_before", "lost_points", "lost_nats", "met_before",
    "recovered_points", "recovered_nats", "explained", "repairs", *FIELDS, *(f"raise_{name}" for name in FIELDS),
    *(f"metric_{name}" for name in (*FIELDS, "networks")), *(f"metric8_{name}" for name in (*FIELDS, "networks")),
    "forwards", "diagnose_s", "recover_s", "layers",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spaces", nargs="*")
    parser.add_argument("--judged", type=int, default=256)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--points", action="store_true", help="only faults that lost a point or more")
    parser.add_argument("--fallbacks-only", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for space in asked.spaces or (NATURAL if asked.fallbacks_only else SPACES):
        file = RESULTS / ("fallbacks.csv" if asked.fallbacks_only else f"recovery_{space}.csv")
        done = {row["case"] for row in csv.DictReader(file.open())} if file.is_file() else set()
        network = open_network(space, asked.judged)
        healthy = bench_of(network, network.subject)[0].measure(Change())
        if asked.fallbacks_only:
            if natural_name(space) not in done:
                append(file, COLUMNS, natural(network, healthy))
            continue
        for case in measurable(network, 1.0 if asked.points else 0.0):
            if case.name not in done and asked.only in case.name:
                append(file, COLUMNS, of_case(network, case, healthy))


def measurable(network: Network, points: float) -> list[Case]:
    """The single faults of accuracy that did measurable harm, of at least so many points, as detection measured it.

    The strong ones come first, so that a run that is stopped has met every mode.
    """
    with (RESULTS / f"detection_{network.space}.csv").open() as file:
        harm = {
            row["case"]: float(row["harm_points"])
            for row in csv.DictReader(file)
            if row["measurable"] == "True" and not row["target"]
        }
    found = cases(network.space, network.subject, {name: load_profile(name) for name in TARGETS})
    single = (case for case in found if len(case.modes) == 1)
    chosen = [case for case in single if case.name in harm and (points <= 0 or harm[case.name] >= points)]
    return sorted(chosen, key=lambda case: -STRENGTHS[case.modes[0]].defaults.index(case.strengths[0]))


def of_case(network: Network, case: Case, healthy: Outcome) -> list[dict[str, Any]]:
    """A planted fault: diagnosed, recovered and reverted by metric, on each target."""
    started = time.perf_counter()
    bench, evidence = bench_of(network, planted(network, case))
    found = diagnose(bench, evidence, None)
    taken = time.perf_counter() - started
    limits = Limits(allowed(bench, healthy) + SLACK_POINTS)
    return [
        {"case": case.name, "diagnose_s": f"{taken:.1f}", **row(bench, found, options, limits, healthy)}
        for options in priced(bench)
    ]


def natural_name(space: str) -> str:
    return f"{space}/int4/int8, round to nearest"


def natural(network: Network, healthy: Outcome) -> list[dict[str, Any]]:
    """The natural fault, without free repairs: layers raised against layers reverted."""
    what = version(network.bundle, Precision.parse("int4/int8"), ("bn_fold", "minmax"))
    bench, _ = open_bench(what, subject_of(what), network.samples)
    nothing = without_findings(bench)
    found = []
    for beyond in LIMITS:
        limits = Limits(allowed(bench, healthy) + SLACK_POINTS + beyond)
        for options in priced(bench):
            first = tuple(min(level, 1) for level in options.widest)
            narrow = reverted(bench, options, limits, "metric8_", first)
            found.append(
                {"case": natural_name(network.space), **row(bench, nothing, options, limits, healthy), **narrow}
            )
    return found


def without_findings(bench: TorchBench) -> Diagnosis:
    """A diagnosis that offers no free repairs."""
    return Diagnosis((), (), regained(bench.measure(Change()), bench.fp32()), Effect())


def allowed(bench: TorchBench, healthy: Outcome) -> float:
    """The healthy int8 network's own drop, in points; none where it is better than FP32."""
    return max(100 * (bench.fp32().value - healthy.value), 0.0)


def priced(bench: TorchBench) -> list[Pricing]:
    """The rungs and prices on the targets that execute what runs now."""
    found = []
    for name in PRICED:
        try:
            found.append(pricing(bench.subject.workload, bench.subject.executed, load_profile(name)))
        except InputError as error:
            print(error, flush=True)
    return found


def row(bench: TorchBench, found: Diagnosis, options: Pricing, limits: Limits, healthy: Outcome) -> dict[str, Any]:
    """One recovery beside one walk on NNCF's way."""
    spent = bench.forwards
    result = recover(bench, found, options, limits)
    taken = bench.forwards - spent
    raised = recover(bench, without_findings(bench), options, limits)
    before, after = bench.measure(Change()), bench.measure(result.after.change)
    lost_points = 100 * (bench.fp32().value - before.value) - allowed(bench, healthy)
    lost_nats = regained(before, healthy).nats
    gained = regained(before, after)
    met_before = not result.before.excess(limits)
    assert lost_nats is not None
    assert gained.nats is not None
    assert gained.points is not None
    explained = found.explained.nats
    return {
        "target": options.target, "judged": bench.samples, "limit": f"{limits.max_drop_points:.2f}",
        "drop_before": f"{result.before.drop_points:.2f}", "lost_points": f"{lost_points:.2f}",
        "lost_nats": f"{lost_nats:.5f}", "met_before": met_before,
        "recovered_points": "" if met_before or lost_points < 1 else f"{gained.points / lost_points:.3f}",
        "recovered_nats": "" if met_before else f"{gained.nats / lost_nats:.3f}",
        "explained": "" if explained is None else f"{explained / lost_nats:.3f}",
        "repairs": " ".join(f"{r.kind}@{r.layer}" for r in result.after.change.repairs),
        **priced_point(result.after, result.before, limits),
        **priced_point(raised.after, raised.before, limits, "raise_"), **reverted(bench, options, limits, "metric_"),
        "forwards": f"{taken + (found.forwards if spent == found.forwards else 0):.0f}",
        "recover_s": f"{result.seconds:.1f}",
        "layers": " ".join(f"{layer}={precision}" for layer, precision in result.after.change.raised),
    }  # fmt: skip


def reverted(
    bench: TorchBench, options: Pricing, limits: Limits, prefix: str, to: Levels | None = None
) -> dict[str, Any]:
    """NNCF's way, measured on the same bench."""
    climb = Climb(bench, options, limits, BOTH, lambda what, done: None)
    walked = by_metric(climb, to)
    shown = priced_point(climb.point(walked.levels), climb.point(options.now), limits, prefix)
    return {**shown, f"{prefix}networks": walked.measured}


def priced_point(after: Point, before: Point, limits: Limits, prefix: str = "") -> dict[str, Any]:
    """What a point reaches and what it adds."""
    added = {name: after.costs[name] - before.costs[name] for name in BOTH}
    return {
        f"{prefix}met": not after.excess(limits), f"{prefix}drop": f"{after.drop_points:.2f}",
        f"{prefix}price": f"{sum(added[name] / before.costs[name] for name in BOTH):.4f}",
        f"{prefix}added_ms": f"{added['latency_ms']:.5f}", f"{prefix}added_bytes": f"{added['size_bytes']:.0f}",
        f"{prefix}raised": len(after.change.raised),
    }  # fmt: skip


if __name__ == "__main__":
    main()
