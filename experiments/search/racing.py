"""Counts what racing saved in searches that are done: the share of a full measurement that a candidate took on average.

    python experiments/search/racing.py [RUN ...]        # run directories; those of claims and fronts by default

Writes results/racing.csv. `mean_share`: samples measured over samples of the split, averaged over the candidates that
were measured at all, FP32 left out. `cost_of_fp32`: the same in passes of plain FP32 over the split: times the
processor time of an evaluation relative to FP32's (the larger of W8A8's and W4A8's in experiments/accuracy/speed.csv).
The sensitivity pass is given apart, in passes over the split.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from haq.history import SEARCH, summarize
from haq.rundir import RUN_FILE, read_run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "racing.csv"
SPEED = HERE.parent / "accuracy" / "speed.csv"


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]]
    runs = given or sorted(
        p.parent for root in ("runs/claims", "runs/fronts") for p in Path(root).glob(f"*/{RUN_FILE}")
    )
    speed = pd.read_csv(SPEED)
    rows = [row for path in runs if (row := about(path, speed)) is not None]
    table = pd.DataFrame(rows)
    table.to_csv(RESULTS, index=False, lineterminator="\n")
    print(table.to_string(index=False))


def about(path: Path, speed: pd.DataFrame) -> dict[str, object] | None:
    """One search's row; None where it did not race or has not begun."""
    run = read_run(path)
    base = run.history.baseline
    if base is None or not run.info["spec"]["search"].get("racing", False):
        return None
    found, model = summarize(run.history), run.info["provenance"]["model"]
    samples = base.measurements[SEARCH].samples
    ratio = float(speed[speed.space == model].cpu_ratio.max())
    share = found.mean_share or 0.0
    return {
        "run": str(path),
        "network": model,
        "targets": " ".join(run.targets),
        "candidates": found.candidates,
        "measured": found.measurements,
        "stopped_early": found.stopped_early,
        "samples": samples,
        "mean_share": round(share, 3),
        "evaluation_of_fp32": ratio,
        "cost_of_fp32": round(share * ratio, 3),
        "sensitivity_passes": round(run.history.sensitivity_forwards / samples, 1),
    }


if __name__ == "__main__":
    main()
