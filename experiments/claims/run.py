"""Answers what the field claims: one search per claim, constraint first, and one table of claim against result.

    python experiments/claims/run.py [SPEC ...]     # specs of this folder without .toml; all of them by default

Searches run in `runs/claims/<spec>` and go on where they stopped. Accuracy is *measured* on the network of the spec
(search split, which chose the point, and validation split, which did not; 95 % intervals); sizes are counted; latencies
are *modelled*, with the profile's error beside them. The full-size graph of a claim is priced without weights: nothing
is said about its accuracy. Writes results.csv and, for a spec whose limits cannot be met, what haq said.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

from haq.api import estimate
from haq.configfile import executed_assignment
from haq.history import SEARCH
from haq.rundir import Run, read_run
from haq.textfile import write_atomically
from haq.trust import Trust

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/claims")
COLUMNS = [
    "claim", "network", "target", "config", "holds_search", "holds_validation", "smaller_percent",
    "faster_percent_modelled", "rise_ms_modelled", "latency_spread", "layers_4_bits",
    "drop_points", "drop_low", "drop_high", "samples",
    "validation_drop_points", "validation_drop_low", "validation_drop_high", "validation_samples",
    "full_size_smaller_percent", "full_size_faster_percent_modelled", "note",
]  # fmt: skip


def main() -> None:
    claims = tomllib.loads((HERE / "claims.toml").read_text())["claims"]
    named = sys.argv[1:] or list(dict.fromkeys(claim["spec"] for claim in claims))
    refused = {spec: said for spec in named if (said := search(spec))}
    rows = [row for claim in claims for row in answers(claim, refused)]
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def search(spec: str) -> str:
    """Run the search; returns what haq said where the limits cannot be met, else nothing."""
    command = [Path(sys.executable).with_name("haq"), "search", HERE / f"{spec}.toml", "--out", RUNS / spec]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print(done.stderr, flush=True)
    if done.returncode == 3:
        said = done.stderr.strip().splitlines()[-1]
        write_atomically(HERE / f"{spec}.refused.txt", said + "\n")
        return said
    done.check_returncode()
    return ""


def answers(claim: dict[str, Any], refused: dict[str, str]) -> list[dict[str, Any]]:
    """A row per target."""
    path = RUNS / claim["spec"]
    about = {"claim": claim["text"]}
    if claim["spec"] in refused:
        return [{**about, "target": t, "holds_search": "no", "note": refused[claim["spec"]]} for t in claim["targets"]]
    if not path.is_dir():
        return []
    run = read_run(path)
    fronts = pd.read_csv(path / "front.csv")
    return [{**about, **answer(claim, run, fronts[fronts.target == target], target)} for target in claim["targets"]]


def answer(claim: dict[str, Any], run: Run, front: pd.DataFrame, target: str) -> dict[str, Any]:
    """The point that speaks for the claim: the most accurate that is small or fast enough, else the nearest."""
    base = run.history.baseline
    assert base is not None
    front = front.assign(
        smaller=-front.size_change_percent,
        faster=-front.latency_change_percent,
        rise_ms=front.latency_ms - base.costs[target]["latency_ms"],
        fours=[count_4_bits(run, config) for config in front.id],
    )
    enough = pd.Series(True, index=front.index)
    enough &= front.smaller >= claim.get("smaller_percent", -1e9)
    enough &= front.faster >= claim.get("faster_percent", -1e9)
    enough &= front.rise_ms <= claim.get("rise_ms", 1e9)
    if claim.get("needs_4_bits"):
        enough &= front.fours > 0
    note = ""
    if claim.get("faster_than_16_bits"):
        at_16, at_8 = (estimate(run.info["provenance"]["model"], target, bits=b).cost.latency_ms for b in (16, 8))
        enough &= at_8 < 0.99 * at_16
        note = f"uniform 16 bits {at_16:.4f} ms, 8 bits {at_8:.4f} ms: 8 bits are storage only, arithmetic is bf16"
    small = front[enough]
    aim = "faster" if "faster_percent" in claim else "smaller"
    chosen = front.loc[small.drop_points.idxmin() if len(small) else front[aim].idxmax()]
    measured = ("drop_points", "drop_low", "drop_high")
    return {
        "network": run.info["provenance"]["model"],
        "target": target,
        "config": chosen.id,
        "holds_search": "yes" if len(small) and chosen.drop_points <= claim["drop_points"] else "no",
        "holds_validation": "yes" if len(small) and chosen.validation_drop_points <= claim["drop_points"] else "no",
        "smaller_percent": f"{chosen.smaller:.1f}",
        "faster_percent_modelled": f"{chosen.faster:.1f}",
        "rise_ms_modelled": f"{chosen.rise_ms:+.4f}",
        "latency_spread": str(Trust.from_json(run.info["targets"][target])),
        "layers_4_bits": chosen.fours,
        **{f"{split}{name}": f"{chosen[split + name]:.2f}" for split in ("", "validation_") for name in measured},
        "samples": base.measurements[SEARCH].samples,
        "validation_samples": int(chosen.validation_samples),
        **full_size(claim, target, note),
    }


def full_size(claim: dict[str, Any], target: str, note: str) -> dict[str, Any]:
    """What the graph that the claim is about costs at one width, without a word on its accuracy."""
    if (about := claim.get("full_size")) is None:
        return {"note": note}
    batch, against = about.get("batch", 1), about.get("baseline", target)
    cost = estimate(about["space"], target, bits=about["bits"], batch=batch).cost
    base = estimate(about["space"], against, bits=32, batch=batch).baseline
    told = f"full size: {about['space']} at {about['bits']} bits everywhere, batch {batch}, against FP32 on {against}"
    return {
        "full_size_smaller_percent": f"{100 * (1 - cost.size_bytes / base.size_bytes):.1f}",
        "full_size_faster_percent_modelled": f"{100 * (1 - cost.latency_ms / base.latency_ms):.1f}",
        "note": f"{told}; {note}" if note else told,
    }


def count_4_bits(run: Run, config: str) -> int:
    """Layers whose weights are stored in 4 bits."""
    executed = executed_assignment(json.loads((run.path / "configs" / f"{config}.json").read_text()))
    return sum(executed.precision(layer).weight.bits == 4 for layer in executed)


if __name__ == "__main__":
    main()
