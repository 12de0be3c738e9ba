"""Export front points of runs to LiteRT and run them beside the simulation.

    python experiments/export/litert.py RUN [RUN ...] [--config ID ...] [--uniform int8/int8 ...] [--flavour static]
        [--split validation] [--samples N]

In the environment of `make test-litert`. RUN is a run directory; without --config all its configs are taken.
--uniform also takes every layer of the run's networks in these formats, whether or not the search found that. Writes
experiments/export/litert.csv, a row for each; rows of others stay. Latency is the median of 30 inferences of one sample
on this machine's cores and means something only when nothing else runs.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from haq.config import Config
from haq.export import EXPORTERS
from haq.hardware.size import size_bytes
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.exportable import exportable
from haq.spacefile import load_space
from haq.verify.artifact import open_artifact
from haq.verify.measuring import How, measure

RESULTS = Path(__file__).parent / "litert.csv"
KEYS = ["network", "target", "config", "flavour", "split", "samples"]
COLUMNS = [*KEYS, "formats", "accuracy_simulated", "accuracy_artifact", "agreement", "largest_error", "largest_output"]
COLUMNS += ["initializer_bytes", "promised_bytes", "file_bytes", "latency_ms", "other_precision", "losses"]


def main() -> None:
    asked = _asked()
    for run in asked.runs:
        for config, where in _configs(run, asked):
            row = _row(config, where, asked)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            _write(row)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--uniform", action="append", default=[])
    parser.add_argument("--flavour", default="static")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--samples", type=int)
    return parser.parse_args()


def _configs(run: Path, asked: argparse.Namespace) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The contents of the run's configs with where they lie, then the uniform ones."""
    files = sorted((run / "configs").glob("*.json"))
    for file in files:
        if not asked.config or file.stem in asked.config:
            yield Config.load(file).content, file
    for formats in asked.uniform:
        first = Config.load(files[0]).content
        yield {**first, "id": formats, "layers": dict.fromkeys(first["layers"], formats), "metrics": {}}, files[0]


@cache
def _bundle(network: str) -> Bundle:
    return load_bundle(load_space(network))


def _row(config: Mapping[str, Any], where: Path, asked: argparse.Namespace) -> dict[str, object]:
    what = exportable(config, _bundle(config["model"]["model"]), where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        report = EXPORTERS["litert"](what, file, {"flavour": asked.flavour})
        found = measure(open_artifact(file, config), what, How(asked.split, repeats=30, samples=asked.samples))
    answers, latency = found.answers, found.latency
    assert latency is not None
    assert found.realised == {line.layer: line.written for line in report.layers}, "the report is not what is written"
    notes = Counter(line.note for line in report.losses if line.note)
    return {
        "network": config["model"]["model"],
        "target": config["target"]["name"],
        "config": config["id"],
        "flavour": asked.flavour,
        "split": asked.split,
        "samples": np.size(answers.simulated),
        "formats": " ".join(f"{n}x{name}" for name, n in Counter(map(str, what.executed.values())).most_common()),
        "accuracy_simulated": f"{np.mean(answers.simulated):.4f}",
        "accuracy_artifact": f"{np.mean(answers.artifact):.4f}",
        "agreement": f"{answers.agreement:.4f}",
        "largest_error": f"{answers.largest_error:.4f}",
        "largest_output": f"{answers.largest_output:.3f}",
        "initializer_bytes": found.initializer_bytes,
        "promised_bytes": size_bytes(what.workload, what.executed),
        "file_bytes": found.file_bytes,
        "latency_ms": f"{latency.median_ms:.3f}",
        "other_precision": sum(line.written != line.asked for line in report.layers),
        "losses": "; ".join(f"{n}: {note}" for note, n in notes.most_common()),
    }


def _write(row: Mapping[str, object]) -> None:
    key = tuple(str(row[column]) for column in KEYS)
    kept = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            kept = [old for old in csv.DictReader(file) if tuple(old[column] for column in KEYS) != key]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, row])


if __name__ == "__main__":
    main()
