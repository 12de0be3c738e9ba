"""Compares the price of a recovery with that of the best of all networks, where all can be told apart.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/diagnose/exhaustive.py [--judged 256]

Writes results/exhaustive.csv: mnist_resnet18 in ten groups (its residual blocks), three faults planted in each of its
versions, no free repairs, so that groups must be raised. On `mobile` a group runs in int8 or, as the widest that it
executes, in fp16: 2^10 networks; on `a100` in int8, fp16 or fp32: 3^10. The optimum is the least price, as recover
minimizes it, of all networks whose *measured* drop holds the limit. It is exact although not all of them are measured
in full: networks are measured from the cheapest on, so that the first that holds is the optimum, none that is dearer
than what recover found, and each on its hardest samples first, until more answers are wrong than the limit allows.

Limits: as in `recovery.py`, and LIMITS beyond it. added_ratio: what recover's result adds, in price, over what the
optimum adds; total_ratio: of the whole network's price with it. cheaper: networks that cost less than what recover
found and were measured, each as far as it took.
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

from haq.allocate import Levels
from haq.diagnose.climb import Climb
from haq.diagnose.finding import Change
from haq.diagnose.recover import BOTH, recover
from haq.diagnose.recovery import Limits
from haq.diagnose.rungs import pricing
from haq.hardware.profile import load_profile
from haq.nn.diagnosis.bench import TorchBench
from haq.nn.task import Batch, ClassificationTask, taken
from haq.space import build_space

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
)  # fmt: skip
"""Versions of the network: (mode, layer, strength) each, far from each other."""
COLUMNS = [
    "faults", "target", "groups", "networks", "judged", "limit", "drop_before", "drop", "price", "optimum",
    "optimum_drop", "added_ratio", "total_ratio", "cheaper", "recover_networks", "recover_s",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judged", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = open_network("mnist_resnet18", asked.judged)
    file = RESULTS / "exhaustive.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, faults in enumerate(FAULTS):
            modes, layers, strengths = zip(*faults, strict=True)
            name = " + ".join(f"{mode}@{layer}/{strength:g}" for mode, layer, strength in faults)
            case = Case(name, network.space, "int8", modes, layers, strengths, seed=number)
            for row in compared(network, case):
                print(row, flush=True)
                writer.writerow(row)
                out.flush()


def compared(network: Network, case: Case) -> list[dict[str, object]]:
    """One row per target and limit of one version of the network."""
    bench, _ = bench_of(network, planted(network, case))
    healthy = bench_of(network, network.subject)[0].measure(Change())
    workload = bench.subject.workload
    groups = [group.layers for group in build_space(workload, granularity="block").groups]
    rows: list[dict[str, object]] = []
    for target in PRICED:
        options = pricing(workload, bench.subject.executed, load_profile(target), groups=groups)
        judge = Judge(bench, network)
        for beyond in LIMITS:
            limits = Limits(allowed(bench, healthy) + SLACK_POINTS + beyond)
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
            rows.append(
                {
                    "faults": case.name,
                    "target": target, "groups": len(groups),
                    "networks": int(np.prod([len(rungs) for rungs in options.rungs])), "judged": bench.samples,
                    "limit": f"{limits.max_drop_points:.2f}", "drop_before": f"{found.before.drop_points:.2f}",
                    "drop": f"{found.after.drop_points:.2f}", "price": f"{price - now:.4f}",
                    "optimum": f"{least - now:.4f}", "optimum_drop": f"{climb.point(best).drop_points:.2f}",
                    "added_ratio": f"{added:.3f}", "total_ratio": f"{price / least:.4f}", "cheaper": measured,
                    "recover_networks": f"{networks:.0f}", "recover_s": f"{found.seconds:.1f}",
                }
            )  # fmt: skip
    return rows


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
