"""Times `make demo` with an empty cache and again with a full one, installation apart, and writes `results.json`.

python experiments/demo/run.py          # in a checkout where `make demo` has installed; on an idle machine
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main() -> None:
    subprocess.run(["make", "--silent", ".venv/.demo"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "HAQ_CACHE_DIR": f"{scratch}/cache"}
        runs = {name: timed(f"{scratch}/{name}", environment) for name in ("first", "second")}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load_before": round(LOAD, 2)}
    (HERE / "results.json").write_text(json.dumps({"machine": machine, **runs}, indent=2) + "\n")
    print(json.dumps(runs, indent=2))


def timed(out: str, environment: dict[str, str]) -> dict[str, object]:
    """One demo into a folder of its own: seconds, and how many candidates were measured."""
    started = time.perf_counter()
    subprocess.run(["make", "--silent", "demo", f"DEMO_OUT={out}"], cwd=ROOT, env=environment, check=True)
    seconds = round(time.perf_counter() - started, 1)
    history = [json.loads(line) for line in Path(out, "history.jsonl").read_text().splitlines()]
    measured = {
        target["signature"]
        for record in history
        if record["kind"] == "candidate"
        for target in record["targets"]
        if "measurement" in target
    }
    candidates = sum(record["kind"] == "candidate" for record in history)
    return {"wall_s": seconds, "candidates": candidates, "distinct_executed_assignments_measured": len(measured)}


LOAD = os.getloadavg()[0]

if __name__ == "__main__":
    main()
