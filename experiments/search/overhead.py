"""Times what a search costs beside its evaluations, on measures that take no time.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/search/overhead.py [--groups 50] [--trials 500]
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/search/overhead.py --groups 500 --trials 100 \
        --samplers haq tpe

The network is a chain of linear layers, one group each, priced by the real cost model on `reference`. Scores of 512
samples and sensitivities come from a formula; the time in the scores is taken off. A trial's overhead is everything
else from one finished candidate to the next: proposing, pricing, writing the history and the SQLite mirror, learning.
`propose_s` ends where the measurement starts, so it holds the pricing too. `setup_s` comes before FP32 is measured.
`overhead_s` is the mean by the clock with setup, `overhead_cpu_s` of processor time without it, which other work on the
machine bends less. `first_s` is the first candidate's, in which sensitivities lead to a plan; both means hold it, the
figures of proposals do not.
`share_percent_SPACE`: `overhead_s` in the wall time of a search whose evaluations take as long as the space's int8
candidates on the whole search split (`experiments/accuracy/speed.csv`, one thread). `gp` takes seconds per trial and is
only run where it is named. Rows of other workloads and samplers stay in `results/overhead.csv`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pictures import draw_overhead
from torch import nn

from haq.accuracy import Scores
from haq.engine.events import BaselineMeasured, CandidateDone, Event
from haq.engine.loop import run_search
from haq.engine.problem import Problem, SearchOptions
from haq.engine.samplers import SAMPLERS
from haq.engine.targets import profile_target
from haq.hardware.profile import load_profile
from haq.history import SEARCH
from haq.nn.trace import trace
from haq.precision import Assignment
from haq.sensitivity import Effect, Sensitivity
from haq.space import build_space

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SPEED = HERE.parent / "accuracy" / "speed.csv"
SAMPLES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=[n for n in SAMPLERS if n != "gp"])
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    evaluations_s = evaluation_times()
    problem = chain(options.groups)
    for sampler in options.samplers:
        row = timed(problem, sampler, options.trials, evaluations_s)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        found = kept(row)
    draw_overhead(found, evaluations_s, RESULTS / "overhead.png")


def evaluation_times() -> dict[str, float]:
    """Space -> seconds of one evaluation of an int8 candidate on its whole search split."""
    table = pd.read_csv(SPEED)
    table = table[table.precision == "int8/int8"]
    return dict(zip(table.space, table.candidate_wall_s.astype(float), strict=True))


def chain(groups: int) -> Problem:
    """Linear layers of 64 to 128 features, each its own group, and scores from a formula."""
    widths = [64 + 16 * (i % 5) for i in range(groups + 1)]
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
        workload = trace(network, (torch.empty(1, widths[0]),), name=f"chain of {groups}")
    target = profile_target(workload, load_profile("reference"))
    provenance = {"model": workload.name, "weights_hash": "none", "data_hash": "none", "metric": "accuracy"}
    made_up = MadeUp(workload.layer_names)
    return Problem(
        workload, build_space(workload), (target,), made_up.measure, (SEARCH,), provenance=provenance,
        sensitivity=made_up.sensitivity,
    )  # fmt: skip


class MadeUp:
    """Scores and sensitivities from a formula: layers add up, at 8 bits a layer loses a fiftieth of what it does at 4.

    All layers at 4 bits lose 20 points together, half of the layers almost none of them.
    """

    def __init__(self, layers: tuple[str, ...]) -> None:
        generator = np.random.default_rng(0)
        lost = generator.uniform(0, 1, len(layers)) ** 3
        self._lost = dict(zip(layers, 20 * lost / lost.sum(), strict=True))
        # One draw per sample: the same samples go wrong first whatever is quantized, as in real networks.
        self._hardness = generator.uniform(0, 100, SAMPLES)

    def measure(self, executed: Assignment, split: str) -> Scores:
        scores: Scores = (self._hardness > 5 + self._points(executed)).astype(np.float64)
        return scores

    def sensitivity(
        self, pieces: Sequence[Assignment], pairs: int, progress: Callable[[int, int], None]
    ) -> Sensitivity:
        effects = {piece: Effect(self._points(piece) / 100, None, SAMPLES) for piece in pieces}
        return Sensitivity("kl", SAMPLES, effects, (), float(SAMPLES * len(pieces)))

    def _points(self, assignment: Assignment) -> float:
        share = {4: 1.0, 8: 0.02}
        return float(sum(self._lost[n] * share.get(assignment.precision(n).weight.bits, 0.0) for n in assignment))


@dataclass(frozen=True)
class Trial:
    """One candidate: seconds until its measurement started, and all that were not measurement, by clock and processor.

    propose: NaN where nothing was measured, as for what executes like FP32: there is no telling where it ended.
    """

    origin: str
    propose_s: float
    propose_cpu_s: float
    overhead_s: float
    overhead_cpu_s: float


class Clock:
    """A measure and a progress function that time what lies between measurements. It changes as the run goes on."""

    def __init__(self, problem: Problem) -> None:
        self._measure = problem.measure
        self._last = self._first = self._measuring = _now()
        self.setup_s = 0.0
        self.trials: list[Trial] = []
        self._start()

    def measure(self, executed: Assignment, split: str) -> Scores:
        started = _now()
        if not self._measuring.any():
            self._first = started
        scores = np.asarray(self._measure(executed, split))
        self._measuring = self._measuring + _now() - started
        return scores

    def progress(self, event: Event) -> None:
        if not isinstance(event, BaselineMeasured | CandidateDone):
            return
        wall_s, cpu_s = (_now() - self._last - self._measuring).tolist()
        if isinstance(event, BaselineMeasured):
            self.setup_s = wall_s
        else:
            begun = self._measuring.any()
            wait_s, wait_cpu_s = (self._first - self._last).tolist() if begun else (np.nan, np.nan)
            self.trials.append(Trial(event.candidate.origin, wait_s, wait_cpu_s, wall_s, cpu_s))
        self._start()

    def _start(self) -> None:
        self._last, self._measuring = _now(), np.zeros(2)


def _now() -> NDArray[np.float64]:
    """(2,) seconds by the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(problem: Problem, sampler: str, trials: int, evaluations_s: dict[str, float]) -> dict[str, object]:
    """The row of one sampler."""
    clock = Clock(problem)
    with tempfile.TemporaryDirectory() as folder:
        run_search(
            replace(problem, measure=clock.measure),
            SearchOptions(trials, sampler=sampler),
            Path(folder) / "run",
            clock.progress,
        )
    table = pd.DataFrame(clock.trials)
    asked = table[~table.origin.str.startswith("seed:")]
    each = (clock.setup_s + table.overhead_s.sum()) / trials
    return {
        "groups": len(problem.space.groups),
        "sampler": sampler,
        "trials": trials,
        "setup_s": round(clock.setup_s, 3),
        "first_s": round(float(table.overhead_s.iloc[0]), 3),
        "overhead_s": round(each, 5),
        "overhead_cpu_s": round((table.overhead_cpu_s.sum()) / trials, 5),
        "overhead_median_s": round(asked.overhead_s.median(), 5),
        "overhead_most_s": round(asked.overhead_s.max(), 5),
        "propose_median_s": round(asked.propose_s.median(), 5),
        "propose_most_s": round(asked.propose_s.max(), 5),
        "propose_cpu_median_s": round(asked.propose_cpu_s.median(), 5),
        "propose_cpu_most_s": round(asked.propose_cpu_s.max(), 5),
        **{f"share_percent_{space}": round(100 * each / (each + s), 2) for space, s in evaluations_s.items()},
    }


def kept(row: dict[str, object]) -> pd.DataFrame:
    """The result file with this row in place of an earlier one of the same workload and sampler."""
    path = RESULTS / "overhead.csv"
    table = pd.DataFrame([row])
    if path.is_file():
        old = pd.read_csv(path)
        same = (old.groups == row["groups"]) & (old["sampler"] == row["sampler"])
        table = pd.concat([old[~same], table], ignore_index=True)
    table.to_csv(path, index=False, lineterminator="\n")
    return table


if __name__ == "__main__":
    main()
