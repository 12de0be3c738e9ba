"""Whether code flips alone cost a twin its agreement: the simulation beside itself, results moved in the last places.

    python experiments/export/qwix_agreement.py     (as qwix_twins.py)

Writes experiments/export/qwix_agreement.csv: reviews_minilm on `reference`, the first batches of the search split up to
SAMPLES. run: the twin, or the simulation whose layers' results are moved by normal numbers, MOVED of the largest.
agreement: answers that are the simulation's. accuracy: of the run, and of the simulation.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from qwix_twins import answers, assignments, config
from torch import Tensor

from haq.export import EXPORTERS
from haq.export.qwix_run import QwixRun
from haq.nn.bundle import load_bundle
from haq.nn.exportable import exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.task import ClassificationTask, batch_size
from haq.nn.trace import trace
from haq.nn.tuned import build_tuned
from haq.spacefile import load_space

SPACE, SAMPLES, MOVED = "reviews_minilm", 640, 2e-7
RESULTS = Path(__file__).parent / "qwix_agreement.csv"


def moved(result: Tensor, read: Tensor) -> Tensor:
    return result + torch.randn_like(result) * result.abs().max() * MOVED


def rows() -> Iterator[dict[str, object]]:
    bundle = load_bundle(load_space(SPACE))
    assert isinstance(bundle.task, ClassificationTask)
    workload = trace(fold_batch_norm(bundle.model, bundle.example), bundle.example, name=SPACE)
    split = bundle.task.splits["search"]
    batches = list(islice(split, -(-SAMPLES // batch_size(split[0].inputs))))
    inputs, labels = [batch.inputs for batch in batches], np.concatenate([batch.labels.numpy() for batch in batches])
    with tempfile.TemporaryDirectory() as folder:
        for target, label, executed in assignments(workload):
            if target != "reference":
                continue
            what = exportable(config(bundle, target, executed), bundle, Path(folder) / "config.json")
            file = Path(folder) / f"{label}.safetensors"
            EXPORTERS["qwix"](what, file, {})
            twin = QwixRun(file, what.model, what.example)
            hooks = dict.fromkeys(workload.layer_names, moved)
            itself = build_tuned(what.model, workload, executed, what.numbers, hooks)
            simulated = answers(what.simulated(), inputs).argmax(1)
            for run, got in (
                ("twin", np.concatenate([twin(batch) for batch in inputs])),
                ("simulation, moved", answers(itself, inputs)),
            ):
                yield {
                    "space": SPACE, "target": target, "config": label, "run": run, "samples": len(got),
                    "agreement_percent": f"{100 * (got.argmax(1) == simulated).mean():.2f}",
                    "accuracy_percent": f"{100 * (got.argmax(1) == labels).mean():.2f}",
                    "simulated_percent": f"{100 * (simulated == labels).mean():.2f}",
                }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = list(rows())
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
