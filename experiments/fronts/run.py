"""Runs the four searches of this folder and writes `results`: fronts, pictures, and what was found of what was asked.

    python experiments/fronts/run.py [NAME ...]      # a spec of this folder without .toml; all of them by default

Searches run in `runs/fronts/<name>` and go on where a stopped one ended. Accuracy is measured (search and validation
split, 95 % intervals); sizes are counted; latencies are modelled.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/fronts")
GOALS = ((75.0, 1.0), (84.0, 1.2))
"""(at least so many percent smaller than FP32, at most so many points lost), asked of the search split."""
KEPT = ("run.json", "front.csv", "front.png", "brief.txt")


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.toml"))
    for name in names:
        run(name)
    answer()


def run(name: str) -> None:
    """Search, and keep what a reader needs."""
    out, kept = RUNS / name, HERE / "results" / name
    started = time.perf_counter()
    command = [Path(sys.executable).with_name("haq"), "search", str(HERE / f"{name}.toml"), "--out", str(out)]
    subprocess.run([str(part) for part in command], check=True)
    kept.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        if (out / file).is_file():
            shutil.copyfile(out / file, kept / file)
    took = {"wall_s": round(time.perf_counter() - started, 1)}
    (kept / "wall.json").write_text(json.dumps(took) + "\n")


def answer() -> None:
    """For every network, target and goal, the front point that comes closest to it."""
    rows = []
    for table in sorted(HERE.glob("results/*/front.csv")):
        fronts = pd.read_csv(table)
        for target, front in fronts.groupby("target", sort=False):
            for smaller, drop in GOALS:
                rows.append({"network": table.parent.name, "target": target, **closest(front, smaller, drop)})
    with (HERE / "results" / "goals.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def closest(front: pd.DataFrame, smaller: float, drop: float) -> dict[str, object]:
    """The most accurate point that is small enough, or else the smallest one."""
    small = front[front.size_change_percent <= -smaller]
    point = small.loc[small.drop_points.idxmin()] if len(small) else front.loc[front.size_bytes.idxmin()]
    met = len(small) > 0 and point.drop_points <= drop
    return {
        "asked_smaller_percent": smaller,
        "asked_drop_points": drop,
        "met_on_search_split": met,
        "config": point.id,
        "smaller_percent": round(-point.size_change_percent, 2),
        "latency_change_percent_modelled": round(point.latency_change_percent, 1),
        "drop_points": round(point.drop_points, 3),
        "drop_low": round(point.drop_low, 3),
        "drop_high": round(point.drop_high, 3),
        "samples": int(point.samples),
        "validation_drop_points": round(point.validation_drop_points, 3),
        "validation_drop_low": round(point.validation_drop_low, 3),
        "validation_drop_high": round(point.validation_drop_high, 3),
        "validation_samples": int(point.validation_samples),
    }


if __name__ == "__main__":
    main()
