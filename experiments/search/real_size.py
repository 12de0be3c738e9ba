"""Compares samplers on real networks: evaluations until the hypervolume that NSGA-II reaches after 500.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/search/real_size.py SPACE --run nsga2       # long
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/search/real_size.py SPACE --run haq
    python experiments/search/real_size.py                                                              # report only

SPACE: solar_efficientnet_lite0, mnist_resnet18 or reviews_minilm. Target `reference`, batch 1, one thread, the default
stack. Accuracy is measured on a fixed subset of the search split, spread evenly over it: 256, 500 and 256 samples.
NSGA-II is Optuna's, alone (`--seeded` gives it haq's own first candidates), with the engine's rule that a repeated
proposal is replaced by a new one, population 20; it measures every candidate in full, `haq` stops those that are
beaten. Both search the space's natural groups. Runs stand in `runs/search/real_size/SPACE/` and go on where they were
stopped. `results/real_size_SPACE.csv` has the curves: the hypervolume of (size, latency, drop) as a fraction of the box
below the reference point: FP32's size and latency, 10 points of drop. `results/real_size.csv`: per run the last value,
and the evaluations that it took to the last value of each baseline. Evaluations are sample-forwards over the subset's
samples, FP32 not counted, a sensitivity pass counted; no validation is run.
"""

from __future__ import annotations

from haq.cli.process import keep_freed_memory, let_waiting_threads_sleep

let_waiting_threads_sleep()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from curves import Budget, BudgetSpent, curve, reached_after  # noqa: E402
from pictures import draw_curves  # noqa: E402

from haq.engine.events import CandidateDone, Event  # noqa: E402
from haq.engine.loop import run_search  # noqa: E402
from haq.engine.problem import SearchOptions, unquantized  # noqa: E402
from haq.engine.samplers import SAMPLERS  # noqa: E402
from haq.history import SEARCH, History, read_history  # noqa: E402
from haq.problems import problem_of  # noqa: E402
from haq.rundir import HISTORY_FILE, read_run  # noqa: E402
from haq.spec import spec_from  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = Path("runs/search/real_size")
SAMPLES = {"solar_efficientnet_lite0": 256, "mnist_resnet18": 500, "reviews_minilm": 256}
DROP = 10.0
"""The reference point's drop, in points."""

BASELINE, OURS = 500, 50
"""Evaluations of an Optuna sampler, and of haq's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", choices=list(SAMPLES))
    parser.add_argument("--run", choices=list(SAMPLERS), help="the sampler to run before the report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeded", action="store_true", help="with haq's own first candidates, for Optuna's samplers")
    parser.add_argument("--evaluations", type=int, help=f"the budget: {BASELINE} by default, {OURS} for haq")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if options.run:
        if options.space is None:
            parser.error("--run needs a space")
        budget = options.evaluations or (OURS if options.run == "haq" else BASELINE)
        run(options.space, options.run, options.seed, budget, seeded=options.seeded or options.run == "haq")
    report()


def run(space: str, sampler: str, seed: int, evaluations: int, *, seeded: bool) -> None:
    """Search, or go on, until so many evaluations are spent."""
    torch.set_num_threads(1)
    keep_freed_memory()
    spec = {
        "scope": {"space": space},
        "hardware": {"targets": ["reference"]},
        "accuracy": {"samples": SAMPLES[space]},
        "search": {"sampler": sampler, "racing": sampler == "haq"},
    }
    problem = replace(problem_of(spec_from(spec, where="real_size.py")), splits=(SEARCH,))
    out = RUNS / space / f"{sampler}{'' if seeded else '-unseeded'}-{seed}"
    before = read_history(out / HISTORY_FILE) if out.is_dir() else History()
    budget = Budget(evaluations * SAMPLES[space], unquantized(problem.workload).signature, before)
    # Four times as many candidates as evaluations: a sampler that races its candidates stops most of them early.
    options = SearchOptions(4 * evaluations, seed, sampler, storage="none", seeds=seeded)
    with contextlib.suppress(BudgetSpent):
        run_search(problem, options, out, Told(budget))


class Told:
    """Passes events to the budget and prints every tenth candidate. It changes because the clock does."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._started = budget, time.perf_counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CandidateDone) and event.done % 10 == 0:
            print(f"{event.done} measured, {time.perf_counter() - self._started:.0f} s", flush=True)
        self._budget(event)


def report() -> None:
    """The curves of all runs that are there, and how they compare."""
    rows = []
    for space, samples in SAMPLES.items():
        curves = dict(curves_of(space))
        if not curves:
            continue
        table = pd.concat([found.assign(run=name) for name, found in curves.items()])
        table.round(6).to_csv(RESULTS / f"real_size_{space}.csv", index=False, lineterminator="\n")
        about = f"{samples} samples; below FP32's size and latency, {DROP:g} points"
        draw_curves(space, curves, about, RESULTS / f"real_size_{space}.png")
        rows += list(compared(space, curves))
    if rows:
        found = pd.DataFrame(rows)
        found.round(4).to_csv(RESULTS / "real_size.csv", index=False, lineterminator="\n")
        print(found.round(4).to_string(index=False))


def curves_of(space: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Run name -> its curve, as a fraction of the box below the reference point."""
    for path in sorted((RUNS / space).glob("*")):
        history = read_run(path).history
        if history.baseline is None or not history.candidates:
            continue
        costs = history.baseline.costs["reference"]
        reference = (costs["size_bytes"], costs["latency_ms"], DROP)
        found = curve(history, "reference", reference)
        found["hypervolume"] /= reference[0] * reference[1] * reference[2]
        yield path.name, found


def compared(space: str, curves: dict[str, pd.DataFrame]) -> Iterator[dict[str, object]]:
    """A row per run and baseline: evaluations until the baseline's last hypervolume."""
    for baseline, theirs in curves.items():
        if not baseline.startswith("nsga2"):
            continue
        goal, spent = float(theirs.hypervolume.iloc[-1]), float(theirs.evaluations.iloc[-1])
        for name, found in curves.items():
            needed = reached_after(found, goal)
            yield {
                "space": space, "baseline": baseline, "baseline_evaluations": spent, "baseline_hypervolume": goal,
                "run": name, "evaluations": float(found.evaluations.iloc[-1]),
                "hypervolume": float(found.hypervolume.iloc[-1]), "evaluations_to_baseline": needed,
                "share_of_baseline": needed / spent,
            }  # fmt: skip


if __name__ == "__main__":
    main()
