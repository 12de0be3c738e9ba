"""Compare the observers on trained networks, on the search split: which default loses least at 8 and at 4 bits?

    python experiments/observers/run.py [SPACE ...]

Writes experiments/observers/results.csv; rows of spaces that are not named stay. Every layer takes the same precision.
`int8 activations` and `int4 weights` quantize one side only, beside fp32, so that each observer is seen alone.
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from haq.accuracy import compare
from haq.nn.bundle import load_bundle
from haq.nn.calibrate import calibrate
from haq.nn.fold import fold_batch_norm
from haq.nn.observers import OBSERVERS, WEIGHT_OBSERVERS
from haq.nn.simulate import Simulator
from haq.nn.task import ClassificationTask, forward, logits_of
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.spacefile import load_space

SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
RESULTS = Path(__file__).parent / "results.csv"
ACTIVATIONS = {"int8 activations": "fp32/int8", "int4 activations": "fp32/int4"}
WEIGHTS = {"int8 weights": "int8/fp32", "int4 weights": "int4/fp32"}
BOTH = {"W8A8": "int8/int8", "W4A8": "int4/int8"}
COLUMNS = ["space", "case", "observer", "weight_observer", "samples", "accuracy", "drop_points"]
COLUMNS += ["drop_low", "drop_high", "agreement", "kl_nats", "seconds"]


def main(spaces: list[str]) -> None:
    kept = [row for row in _read() if row["space"] not in spaces]
    rows = kept + [row for space in spaces for row in measure(space)]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(space: str) -> list[dict[str, str]]:
    bundle = load_bundle(load_space(space))
    task = bundle.task
    assert isinstance(task, ClassificationTask)
    model = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(model, bundle.example, name=space)
    calibration = calibrate(model, workload, task.calibration())
    exact, labels = logits(model, task)
    cases = [(case, text, o, "mse") for case, text in ACTIVATIONS.items() for o in OBSERVERS]
    cases += [(case, text, "mse", w) for case, text in WEIGHTS.items() for w in WEIGHT_OBSERVERS]
    cases += [(case, text, o, w) for case, text in BOTH.items() for o in OBSERVERS for w in WEIGHT_OBSERVERS]
    rows = []
    for case, text, observer, weight_observer in cases:
        start = time.perf_counter()
        used = replace(calibration, observer=observer, weight_observer=weight_observer)
        uniform = Assignment.uniform(workload.layer_names, Precision.parse(text))
        found, _ = logits(Simulator(model, workload, used).build(uniform), task)
        right, reference = ((x.argmax(1) == labels).double().numpy() for x in (found, exact))
        m = compare(reference, right, "search")
        assert m.drop_interval is not None
        kl = torch.nn.functional.kl_div(found.log_softmax(1), exact.log_softmax(1), log_target=True, reduction="none")
        numbers = (m.accuracy, m.drop_points, m.drop_interval.low, m.drop_interval.high)
        agreement = float((found.argmax(1) == exact.argmax(1)).double().mean())
        tail = [f"{agreement:.4f}", f"{float(kl.sum(1).mean()):.6f}", f"{time.perf_counter() - start:.1f}"]
        values = [space, case, observer, weight_observer, str(m.samples), *(f"{n:.4f}" for n in numbers), *tail]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        print(*values, sep="\t", flush=True)
    return rows


def logits(model: torch.nn.Module, task: ClassificationTask) -> tuple[Tensor, Tensor]:
    """(samples, classes) logits and (samples,) labels of the search split."""
    with torch.inference_mode():
        found = [logits_of(forward(model, batch.inputs)) for batch in task.splits["search"]]
    return torch.cat(found), torch.cat([batch.labels for batch in task.splits["search"]])


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(sys.argv[1:] or list(SPACES))
