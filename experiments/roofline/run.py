"""Compares the profiles' modelled latencies with published device timings, row by row, and writes `results.csv`.

    python experiments/roofline/run.py

The profiles' efficiencies and overheads were set by hand while looking at these rows, so this is how well the first
roofline can be made to agree with them, not how well it predicts an unseen model.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from haq.pricing import price
from haq.spacefile import load_space, with_input
from haq.tracecache import workload_of

HERE = Path(__file__).resolve().parent


def main() -> None:
    rows = pd.read_csv(HERE / "published.csv")
    rows["modelled_ms"] = [modelled(row) for row in rows.itertuples()]
    rows["error_percent"] = (100 * (rows.modelled_ms / rows.latency_ms - 1)).round(1)
    rows["modelled_ms"] = rows.modelled_ms.round(4)
    rows.to_csv(HERE / "results.csv", index=False, lineterminator="\n")
    groups = rows.groupby(["target", "model", "precision"], sort=False)
    summary = groups.error_percent.agg(
        rows="size", mean_absolute_percent=lambda e: e.abs().mean().round(1), worst=lambda e: e.loc[e.abs().idxmax()]
    ).reset_index()
    summary.to_csv(HERE / "summary.csv", index=False, lineterminator="\n")
    print(summary.to_string(index=False))


def modelled(row: object) -> float:
    """The modelled latency of one published row, every layer at its bit-width."""
    space = load_space(str(row.space))  # type: ignore[attr-defined]
    if row.space == "solar_efficientnet_lite0":  # type: ignore[attr-defined]
        space = with_input(space, "3x224x224")
    return price(workload_of(space), row.target, int(row.bits), batch=int(row.batch)).cost.latency_ms  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
