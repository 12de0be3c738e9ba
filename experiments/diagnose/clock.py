"""Times a whole incident as someone on call meets it: `haq diagnose CONFIG`, then `haq recover CONFIG --max-drop F`.

    python experiments/diagnose/clock.py [SPACE ...]

Adds to results/clock.csv, one row per command and the sum of both, in seconds of wall time from the start of the
command's process to its end, with two threads and a warm cache (weights and data are there; nothing of the network's
own was measured before). The config: all layers in int4/int8, rounded to nearest (bn_fold, minmax), as the `reference`
runs them, or `--config` another one; the drop: `--max-drop`. load: what else runs on the machine, its processes that
run or wait for a core in the minute before, so that a time beside a load of more than 2 is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from networks import version
from rows import append

from haq.nn.bundle import load_bundle
from haq.precision import Precision
from haq.spacefile import load_space

RESULTS = Path(__file__).resolve().parent / "results"
SPACES = ("mnist_resnet18", "reviews_minilm")
COLUMNS = [
    "space", "config", "command", "max_drop", "wall_s", "cpu_s", "limit_s", "within", "forwards", "samples",
    "drop_before", "drop_after", "met", "raised", "repairs", "findings", "load",
]  # fmt: skip
LIMITS_S = {"mnist_resnet18": 180, "reviews_minilm": 300}
"""What the whole incident may take."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spaces", nargs="*", default=SPACES)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--config", type=Path, help="another config of the one space that is named")
    asked = parser.parse_args()
    for space in asked.spaces:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.json" if asked.config is None else asked.config
            if asked.config is None:
                bundle = load_bundle(load_space(space))
                written = version(bundle, Precision.parse("int4/int8"), ("bn_fold", "minmax")).config
                config.write_text(json.dumps(dict(written)))
            name = "int4/int8, round to nearest" if asked.config is None else asked.config.stem
            incident(space, name, config, asked.max_drop, Path(folder))


def incident(space: str, name: str, config: Path, max_drop: float, folder: Path) -> None:
    """Both commands in turn, and a row for each and for both."""
    file = RESULTS / "clock.csv"
    first = timed(["diagnose", str(config), "--json"])
    recovering = ["recover", str(config), "--max-drop", f"{max_drop:g}", "--out", str(folder / "out.json"), "--json"]
    second = timed(recovering)
    both = {key: first[key] + second[key] for key in ("wall_s", "cpu_s")}
    limit = LIMITS_S.get(space)
    within = "" if limit is None else both["wall_s"] <= limit
    diagnosis, recovery = first["answer"], second["answer"]
    after = recovery["after"]
    about = {"space": space, "config": name}
    rows = [
        {**about, "command": "diagnose", **times(first), "findings": len(diagnosis.get("findings", ()))},
        {
            **about, "command": "recover", "max_drop": max_drop, **times(second),
            "forwards": f"{recovery['sample_forwards']:.0f}", "samples": recovery["samples"],
            "drop_before": f"{recovery['before']['drop_points']:.2f}", "drop_after": f"{after['drop_points']:.2f}",
            "met": recovery["met"], "raised": len(after["layers"]), "repairs": len(after["repairs"]),
        },
        {
            **about, "command": "both", "wall_s": f"{both['wall_s']:.1f}", "cpu_s": f"{both['cpu_s']:.1f}",
            "limit_s": limit, "within": within,
        },
    ]  # fmt: skip
    append(file, COLUMNS, rows)


def timed(command: list[str]) -> dict[str, Any]:
    """One command line, from start to end; it must succeed."""
    load, before = os.getloadavg()[0], os.times()
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", "from haq.cli import main; main()", *command],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    after = os.times()
    if done.returncode:
        raise SystemExit(f"haq {' '.join(command)}: {done.stderr}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "wall_s": after.elapsed - before.elapsed, "cpu_s": cpu_s, "load": load, "answer": json.loads(done.stdout)
    }  # fmt: skip


def times(found: dict[str, Any]) -> dict[str, str]:
    return {"wall_s": f"{found['wall_s']:.1f}", "cpu_s": f"{found['cpu_s']:.1f}", "load": f"{found['load']:.1f}"}


if __name__ == "__main__":
    main()
