"""Runs a config's ONNX artifact beside its simulation with sums in fp32, as haq measures, and in fp64.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -P experiments/export/sums.py [CONFIG.json]

(-P, since the neighbour onnx.py would be taken for the package.)
For the one config of onnx.csv that the gate refuses: whether the artifact or the order of the simulation's sums is why.
Writes sums.csv: on the whole search split the accuracy of each, and for each pair how many answers differ and by how
much outputs do (*measured*).
"""

from __future__ import annotations

import copy
import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from haq.export import EXPORTERS
from haq.nn.exportable import load_exportable
from haq.nn.task import ClassificationTask
from haq.verify.artifact import open_artifact
from haq.verify.measuring import Running

RESULTS = Path(__file__).resolve().parent / "sums.csv"
CONFIG = Path("runs/export/reviews_minilm-mixed/configs/1c7e52a80c97.json")
COLUMNS = [
    "config", "one", "other", "samples", "accuracy_one", "accuracy_other", "answers_differ", "largest_difference",
    "mean_difference",
]  # fmt: skip


def main(config: Path) -> None:
    what = load_exportable(config, {})
    assert isinstance(what.task, ClassificationTask)
    simulated = what.simulated()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        EXPORTERS["onnx-qdq"](what, file, {})
        models = {
            "artifact": Running(open_artifact(file, what.config)),
            "simulation, fp32 sums": simulated,
            "simulation, fp64 sums": copy.deepcopy(simulated).double(),
        }
        logits: dict[str, NDArray[np.float64]] = {}
        for name, model in models.items():
            outputs = what.task.outputs(model, "search")
            logits[name] = torch.cat([part.double() for part in outputs.parts]).numpy()
            labels = torch.cat(list(outputs.labels)).numpy()
    right = {name: float((values.argmax(1) == labels).mean()) for name, values in logits.items()}
    with RESULTS.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one, other in itertools.combinations(models, 2):
            gap = np.abs(logits[one] - logits[other])
            differ = int((logits[one].argmax(1) != logits[other].argmax(1)).sum())
            writer.writerow([config.stem, one, other, len(labels), f"{right[one]:.4f}", f"{right[other]:.4f}", differ,
                             f"{gap.max():.4g}", f"{gap.mean():.4g}"])  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CONFIG)
