"""Compares the price of a recovery with that of the best of all networks, where all can be told apart.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/diagnose/exhaustive.py [--judged 256]

Writes results/exhaustive.csv: mnist_resnet18 in ten groups (its residual blocks), without free repairs, so that groups
must be raised. Its versions have three planted faults each, one of them has one in every block. On `mobile` a block
runs in int8 or, as the widest that it executes, in fp16 (2^10 networks), on `a100` in int8, fp16 or fp32 (3^10; not
for the version with faults everywhere, of which too many networks would have to be measured). The
optimum is the least price, as recover minimizes it, of all networks whose *measured* drop holds the limit. It is exact
although not all of them are measured in full: networks are measured from the cheapest on, so that the first that holds
is the optimum, none that is dearer than what recover found, and each on its hardest samples first, until more answers
are wrong than the limit allows.

Limits: as in `recovery.py`, and LIMITS beyond it. added_ratio: what recover's result adds, in price, over what the
optimum adds; total_ratio: of the whole network's price with it. tried: networks that cost less than what recover found
and were measured, each as far as it took.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
import torch
from cases import Case
from networks import Network, bench_of, open_network, planted
from recovery import SLACK_POINTS, allowed, without_findings
from rows import append

from haq.allocate import Levels
from haq.diagnose.climb import Climb
from haq.diagnose.finding import Change, Outcome
from haq.diagnose.recover import BOTH, recover
from haq.diagnose.recovery import Limits
from haq.diagnose.rungs import Pricing, pricing
from haq.hardware.profile import load_profile
from haq.nn.diagnosis.bench import TorchBench
from haq.nn.task import Batch, ClassificationTask, taken
from haq.space import build_space
from haq.workload import Workload

RESULTS = Path(__file__).resolve().parent / "results"
PRICED = ("mobile", "a100")
LIMITS = (0.0, 1.0, 3.0)
FAULTS = (
    (
        ("biased-error", "layer3.0.downsample.0", 4.0), ("calibration-mismatch", "layer1.1.conv1", 16.0),
        ("join-mismatch", "layer4.0.conv2", 256.0),
    ),
    (
        ("degenerate-scale", "layer1.1.conv1", 0.75), ("sensitive-operator", "layer3.0.conv1", 1.0),
        ("activation-outliers", "layer4.1.conv1", 256.0),
    ),
    (
        ("error-accumulation", "layer1.0.conv1", 0.3), ("sensitive-operator", "fc", 1.0),
        ("error-accumulation", "layer3.0.downsample.0", 0.4),
    ),
    tuple(
        ("biased-error", layer, 2.0)
        for layer in (
            "conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1", "layer3.0.conv1",
            "layer3.1.conv1", "layer4.0.conv1", "layer4.1.conv1", "fc",
        )
    ),
)  # fmt: skip
"""Versions of the network: (mode, layer, strength) each, far from each other."""
COLUMNS = [
    "faults", "target", "groups", "networks", "judged", "limit", "drop_before", "met", "drop", "price", "optimum",
    "optimum_drop", "added_ratio", "total_ratio", "tried", "recover_networks", "recover_s",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judged", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = open_network("mnist_resnet18", asked.judged)
    healthy = bench_of(network, network.subject)[0].measure(Change())
    file = RESULTS / "exhaustive.csv"
    done = {row["faults"] for row in csv.DictReader(file.open())} if file.is_file() else set()
    for number, faults in enumerate(FAULTS):
        title = " + ".join(f"{mode}@{layer}/{strength:g}" for mode, layer, strength in faults)
        if title not in done:
            modes, layers, strengths = zip(*faults, strict=True)
            case = Case(title, network.space, "int8", modes, layers, strengths, seed=number)
            bench = bench_of(network, planted(network, case))[0]
            workload, executed = bench.subject.workload, bench.subject.executed
            names = PRICED if len(faults) < len(blocks(workload)) else PRICED[:1]
            targets = [pricing(workload, executed, load_profile(name), groups=blocks(workload)) for name in names]
            rows = compared(bench, network, targets, healthy)
            append(file, COLUMNS, ({"faults": title, **row} for row in rows))


def blocks(workload: Workload) -> tuple[tuple[str, ...], ...]:
    """The layers of each residual block, and those outside of them."""
    return tuple(group.layers for group in build_space(workload, granularity="block").groups)


def compared(bench: TorchBench, network: Network, targets: list[Pricing], healthy: Outcome) -> list[dict[str, object]]:
    """One row per target and limit of one version of the network."""
    judge = Judge(bench, network)
    return [
        against_best(bench, judge, options, Limits(allowed(bench, healthy) + SLACK_POINTS + beyond))
        for options in targets
        for beyond in LIMITS
    ]


def against_best(bench: TorchBench, judge: Judge, options: Pricing, limits: Limits) -> dict[str, object]:
    """What recover found beside the optimum."""
    spent = bench.forwards
    found = recover(bench, without_findings(bench), options, limits)
    networks = (bench.forwards - spent) / bench.samples
    climb = Climb(bench, options, limits, BOTH, lambda what, done: None)
    raised = dict(found.after.change.raised)
    reached = tuple(
        next(k for k, rung in enumerate(rungs) if all(raised.get(n, rungs[0][n]) == p for n, p in rung.items()))
        for rungs in options.rungs
    )
    best, measured = optimum(climb, judge, reached)
    now, price, least = (climb.price(levels) for levels in (options.now, reached, best))
    added = (price - now) / (least - now) if least > now else 1.0 if price <= now else np.inf
    return {
        "target": options.target, "groups": len(options.groups),
        "networks": int(np.prod([len(rungs) for rungs in options.rungs])), "judged": bench.samples,
        "limit": f"{limits.max_drop_points:.2f}", "drop_before": f"{found.before.drop_points:.2f}",
        "met": found.met, "drop": f"{found.after.drop_points:.2f}", "price": f"{price - now:.4f}",
        "optimum": f"{least - now:.4f}", "optimum_drop": f"{climb.point(best).drop_points:.2f}",
        "added_ratio": f"{added:.3f}", "total_ratio": f"{price / least:.4f}", "tried": measured,
        "recover_networks": f"{networks:.0f}", "recover_s": f"{found.seconds:.1f}",
    }  # fmt: skip


def optimum(climb: Climb, judge: Judge, reached: Levels) -> tuple[Levels, int]:
    """The cheapest network that holds the drop, and how many cheaper than what was reached were measured."""
    options, limit = climb.options, climb.limits.max_drop_points
    every = np.array(list(itertools.product(*(range(len(rungs)) for rungs in options.rungs))))
    zeros = np.zeros((len(options.groups), max(len(rungs) for rungs in options.rungs)))
    model = options.model(zeros)
    prices = np.asarray(sum(weight * model.value(name, every) for name, weight in climb.weights.items()))
    bound = climb.price(reached)
    order = [place for place in np.argsort(prices, kind="stable") if prices[place] < bound * (1 - 1e-9)]
    for count, place in enumerate(order, 1):
        levels = tuple(int(level) for level in every[place])
        if judge.holds(Change(raised=options.raised(levels)), limit) and climb.accurate(levels):
            return levels, count
    return reached, len(order)


class Judge:
    """Says whether networks may hold a limit, from as few answers as it takes. It changes: what was refused is kept."""

    def __init__(self, bench: TorchBench, network: Network) -> None:
        task = network.samples.judged
        assert isinstance(task, ClassificationTask)
        batches = task.splits[network.samples.split]
        labels = torch.cat([batch.labels for batch in batches])
        inputs = tuple(torch.cat(column) for column in zip(*(batch.inputs for batch in batches), strict=True))
        now = bench.measure(Change())
        assert now.kl is not None
        hardest = torch.tensor(np.argsort(-now.kl, kind="stable").copy())
        self._batches = [Batch(taken(inputs, rows), labels[rows]) for rows in hardest.split(len(labels) // 8)]
        self._bench, self._wrong = bench, dict[Change, int]()

    def holds(self, change: Change, limit: float) -> bool:
        """Whether no more answers are wrong than the limit allows; the wrong ones are counted until there are more."""
        bench = self._bench
        most = (1 - bench.fp32().value + limit / 100) * bench.samples + 1e-6
        if self._wrong.get(change, 0) <= most:
            model = bench.changed(change).build()
            wrong = 0
            with torch.inference_mode():
                for batch in self._batches:
                    wrong += int((model(*batch.inputs).argmax(1) != batch.labels).sum())
                    if wrong > most:
                        break
            self._wrong[change] = wrong
        return self._wrong[change] <= most


if __name__ == "__main__":
    main()
