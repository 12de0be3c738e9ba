"""How much a short finetuning gives back where 4-bit weights lose too much, and how long it takes.

    python experiments/accuracy/qat.py [SPACE ...]

Writes experiments/accuracy/qat.csv; rows of spaces that are not named stay. Every layer takes int4 weights and int8
activations, the first and the last too; both operands of an attention product take int8. It starts from rounding to the
nearest code in ranges of least squared error. Options were chosen on the search split; the epoch that is kept is the
best there, so that the figure of the search split flatters and that of validation does not. What was stopped goes on.
Minutes are of training and of judging each epoch, without loading and the last measurements; processor_minutes are of
everything, and empty where a run was stopped and went on. The committed minutes are an upper bound: that run's waiting
threads spun, beside other programs on the same two cores; asleep, as they are now, two epochs took 5.4 minutes there.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

from haq.cli.process import keep_freed_memory, let_waiting_threads_sleep
from haq.finetuning import finetune
from haq.spacefile import load_space
from haq.tracecache import workload_of

EPOCHS = {"solar_efficientnet_lite0": 4, "reviews_minilm": 1}
START = ["bn_fold", "mse"]
"""Not haq's own stack, which loses less: what is asked is what training gives back where quantization lost much."""
RESULTS = Path(__file__).parent / "qat.csv"
COLUMNS = ["space", "precision", "split", "samples", "drop_before", "drop_before_low", "drop_before_high"]
COLUMNS += ["accuracy", "drop_points", "drop_low", "drop_high", "epochs", "epoch_kept", "steps", "learning_rate"]
COLUMNS += ["minutes", "threads", "processor_minutes"]


def main(spaces: list[str]) -> None:
    for space in spaces:
        rows = measure(space)
        kept = [row for row in _read() if row["space"] != space]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept + rows)


def measure(space: str) -> list[dict[str, Any]]:
    folder = Path("runs") / "qat"
    folder.mkdir(parents=True, exist_ok=True)
    config, before_s = folder / f"{space}.json", sum(os.times()[:2])
    layers = {
        layer.name: "int8/int8" if layer.kind == "matmul" else "int4/int8"
        for layer in workload_of(load_space(space)).layers
    }
    raw = {"schema": "haq.config/v1", "id": "w4a8", "model": {"model": space}, "layers": layers}
    config.write_text(json.dumps({**raw, "quantization": {"ptq": START}}))
    events: list[Any] = []

    def report(event: Any) -> None:
        events.append(event)
        print(event, flush=True)

    tuned = finetune(config, folder / f"{space}-tuned.json", {}, {"epochs": EPOCHS[space]}, report)
    # Processor time of a run that was stopped before is unknown: only this process has been watched.
    processor = "" if events[0].done else f"{(sum(os.times()[:2]) - before_s) / 60:.1f}"
    how, rows = tuned["provenance"]["finetune"], []
    for key in ("accuracy", "accuracy_validation"):
        now, before = tuned["metrics"][key], how["before"][key]
        rows.append(
            {
                "space": space,
                "precision": "int4/int8",
                "split": now["split"],
                "samples": now["samples"],
                **_drop(before, "drop_before", "drop_before"),
                "accuracy": f"{now['value']:.4f}",
                **_drop(now, "drop_points", "drop"),
                **{name: how[name] for name in ("epochs", "epoch_kept", "steps", "learning_rate", "threads")},
                "minutes": f"{how['seconds'] / 60:.1f}",
                "processor_minutes": processor,
            }
        )
    print(*rows, sep="\n")
    return rows


def _drop(metric: dict[str, Any], name: str, prefix: str) -> dict[str, str]:
    interval = metric["drop_interval"]
    numbers = (metric["drop_points"], interval["low"], interval["high"])
    return dict(zip((name, f"{prefix}_low", f"{prefix}_high"), (f"{n:.2f}" for n in numbers), strict=True))


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "2"
    let_waiting_threads_sleep()  # before torch is loaded
    keep_freed_memory()
    main(sys.argv[1:] or list(EPOCHS))
