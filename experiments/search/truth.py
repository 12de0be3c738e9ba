"""Measures all 4,096 assignments of `small_cnn`, then how near samplers come to the true front, and how soon.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/search/truth.py [--samplers haq nsga2 ...] [--seeds 5]

Target `reference`, batch 1, plain rounding (`ptq = ["bn_fold"]`: the default stack loses so little at 4 bits that
there would be nothing to find). `results/truth.npz` holds which of the 1,000 digits of the search split each assignment
gets right; it is measured where it is absent or of other weights, and goes on where it was stopped. Searches then run
on a measure that looks scores up there, so they differ from searches on the network only in speed.

Every figure is the hypervolume of (size, latency, drop) relative to that of the true front, below a stated reference
point: FP32's size and latency x 1.001, and 20 points of drop, or 6, below which there is less that comes for free (the
worst assignment loses about 45). Budget: evaluations of 1,000 sample-forwards, a sensitivity pass counted, FP32 not.
Optuna's samplers run plain and, where `seeds` is true, after haq's own first candidates; they measure every candidate
in full, `haq` stops those that are beaten. Repeated proposals are replaced by new ones for all of them. `truth.csv` has
a row per run, `truth_summary.csv` median, least and most over the seeds, `truth_front.csv` the true front.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from curves import Budget, BudgetSpent, curve, reached_after, volume_at
from numpy.typing import NDArray
from pictures import draw_truth
from truth_table import Lookup, all_levels, losses, table_of

from haq.engine.loop import run_search
from haq.engine.problem import Problem, SearchOptions, unquantized
from haq.engine.samplers import SAMPLERS
from haq.history import SEARCH, History
from haq.pareto import hypervolume, non_dominated
from haq.problems import problem_of
from haq.rundir import read_run
from haq.spec import spec_from

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SPEC = {
    "scope": {"space": str(HERE / "small_cnn.toml")},
    "hardware": {"targets": ["reference"]},
    "accuracy": {"ptq": ["bn_fold"]},
}
JUDGED = ("haq", "nsga2", "tpe", "random")
AFTER = (16, 32, 64)
"""Evaluations after which the front is judged; the last is the budget."""

DROPS = (20.0, 6.0)
"""The reference points' drops."""

SAMPLES = 1000
KEYS = ["sampler", "seeds", "seed", "reference_drop_points"]
STANDALONE = frozenset({"haq"})
"""Samplers that are not asked without haq's own first candidates."""


@dataclass(frozen=True)
class Truth:
    """The true front and its volumes. references, volumes: by drop of the reference point."""

    front: NDArray[np.float64]
    references: dict[float, tuple[float, float, float]]
    volumes: dict[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in JUDGED if name in SAMPLERS]
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=known)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each sampler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    problem = problem_of(spec_from(SPEC, where="truth.py"))
    table = table_of(problem, RESULTS / "truth.npz", Path("runs/search/truth/under_way.npz"))
    every = losses(problem, table)
    truth = truth_of(every)
    write_front(problem, every)
    lookup = Lookup(problem, table)
    quick = replace(problem, measure=lookup.measure, race=lookup.race, splits=(SEARCH,))
    curves = pd.concat(list(runs(quick, truth, options.samplers, options.seeds)), ignore_index=True)
    found = judged(curves)
    summary = summarized(found)
    found.round(6).to_csv(RESULTS / "truth.csv", index=False, lineterminator="\n")
    summary.round(4).to_csv(RESULTS / "truth_summary.csv", index=False, lineterminator="\n")
    draw_truth(every, truth.front, curves[curves.reference_drop_points == DROPS[0]], RESULTS / "truth.png")
    print(f"true front: {len(truth.front)} points; reference points {list(truth.references.values())}")
    print(summary.round(4).to_string(index=False))


def truth_of(every: NDArray[np.float64]) -> Truth:
    """every: (assignments, 3) losses, FP32 last."""
    front = every[non_dominated(every)]
    references = {drop: (1.001 * every[-1, 0], 1.001 * every[-1, 1], drop) for drop in DROPS}
    return Truth(front, references, {drop: hypervolume(front, point) for drop, point in references.items()})


def write_front(problem: Problem, every: NDArray[np.float64]) -> None:
    """The true front with its bit-widths, smallest first."""
    points = all_levels(problem.space)
    bits = np.array(problem.space.groups[0].bits)[points]
    table = pd.DataFrame(every, columns=["size_bytes", "latency_ms_modelled", "drop_points"])
    table["bits"] = ["-".join(map(str, row)) for row in bits.tolist()]
    kept = table[non_dominated(every)].sort_values(["size_bytes", "latency_ms_modelled"])
    kept.to_csv(RESULTS / "truth_front.csv", index=False, lineterminator="\n", float_format="%.6g")


def runs(problem: Problem, truth: Truth, samplers: Sequence[str], seeds: int) -> Iterator[pd.DataFrame]:
    """The curve of every sampler, with and without seeds, from every seed, below each reference point."""
    for sampler in samplers:
        for with_seeds in (True,) if sampler in STANDALONE else (False, True):
            for seed in range(seeds):
                history = searched(problem, sampler, seed, with_seeds=with_seeds)
                for drop, reference in truth.references.items():
                    found = curve(history, "reference", reference)
                    found["relative"] = found.hypervolume / truth.volumes[drop]
                    found[KEYS] = sampler, with_seeds, seed, drop
                    yield found
            print(f"{sampler}, seeds {with_seeds}: {seeds} runs done", flush=True)


def searched(problem: Problem, sampler: str, seed: int, *, with_seeds: bool) -> History:
    """What a sampler finds within the budget; only haq's own races its candidates."""
    raced = problem if sampler in STANDALONE else replace(problem, race=None)
    # Four times as many candidates as evaluations: one that races its candidates stops most of them early.
    options = SearchOptions(4 * AFTER[-1], seed, sampler, storage="none", seeds=with_seeds)
    budget = Budget(AFTER[-1] * SAMPLES, unquantized(problem.workload).signature, History())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with contextlib.suppress(BudgetSpent):
            run_search(raced, options, out, budget)
        return read_run(out).history


def judged(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per run: the relative hypervolume after so many evaluations."""
    rows = []
    for key, found in curves.groupby(KEYS, sort=False):
        after = {f"after_{n}": volume_at(found.assign(hypervolume=found.relative), n) for n in AFTER}
        to_99 = reached_after(found.assign(hypervolume=found.relative), 0.99)
        rows.append({**dict(zip(KEYS, key, strict=True)), **after, "evaluations_to_0.99": to_99})
    return pd.DataFrame(rows)


def summarized(found: pd.DataFrame) -> pd.DataFrame:
    """Median, least and most over the seeds; `reached_0.99` counts the runs that got there within the budget."""
    rows = []
    for key, group in found.groupby([key for key in KEYS if key != "seed"], sort=False):
        about = dict(zip([key for key in KEYS if key != "seed"], key, strict=True))
        row: dict[str, object] = {**about, "runs": len(group)}
        for n in AFTER:
            values = group[f"after_{n}"]
            row |= {f"median_{n}": values.median(), f"least_{n}": values.min(), f"most_{n}": values.max()}
        rows.append({**row, "reached_0.99": int((group[f"after_{AFTER[-1]}"] >= 0.99).sum())})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
