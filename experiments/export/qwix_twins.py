"""Run exported qwix rules in JAX on the CPU and compare with what haq measured, on real inputs.

    python experiments/export/qwix_twins.py [SPACE ...]     (with the extra `tpu`, see `make test-qwix`)

Writes experiments/export/qwix.csv; rows of spaces that are not named stay. 32 samples of the search split. Configs:
`float` FP32 throughout: the twin alone; `int8` and `mixed` on tpu-v4, `w8a8` and `w4a8` on reference; mixed is 4, 8,
16, 32 in turn, layer by layer. Weights as haq's default stack rounds them, carried over as codes and scales.
`codes_anew`: the same rules where qwix rounds the FP32 weights itself, as it does for whoever takes the rules alone.
error: the largest over all outputs; relative_error: that over the largest output; rms_error: root mean square over
that of the outputs. rounding_rms: the same of what rounding does as the network runs, the tolerance being sqrt(2) of
that; layer_gap: the largest error of one layer on what haq's layer read, the tolerance being 1, on 8 samples
(haq/export/qwix_layers.py). quantization_error: of the simulation against FP32. agreement: same largest output.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import qwix
import torch
from numpy.typing import NDArray

from haq.export import EXPORTERS
from haq.export.flax_twins import flax_twin
from haq.export.qwix_layers import layer_gaps, unrounded
from haq.export.qwix_provider import HaqProvider
from haq.export.qwix_run import QwixRun
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.size import size_bytes
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.exportable import Exportable, exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.task import ClassificationTask, Inputs, batch_size, first_samples, forward, logits_of
from haq.nn.trace import trace
from haq.precision import BIT_WIDTHS, Assignment
from haq.spacefile import load_space
from haq.techniques import DEFAULT_STACK
from haq.workload import Workload

SPACES = ("mnist_resnet18", "mnist_mobilenet_v3_small", "reviews_minilm", "solar_efficientnet_lite0")
SAMPLES = 32
RESULTS = Path(__file__).parent / "qwix.csv"
COLUMNS = ["space", "target", "config", "weights", "samples", "error", "relative_error", "rms_error"]
COLUMNS += ["rounding_rms", "layer_gap", "quantization_error", "agreement_percent", "layers", "rules", "as_asked"]
COLUMNS += ["promised_bytes", "stored_bytes", "seconds_to_compile"]
Array = NDArray[np.float32]


def assignments(workload: Workload) -> Iterator[tuple[str, str, Assignment]]:
    """(target, name, executed)."""
    names = workload.layer_names
    turns = Assignment.of({name: BIT_WIDTHS[i % 4] for i, name in enumerate(names)})
    for target, label, wanted in (
        ("tpu-v4", "float", Assignment.uniform(names, 32)),
        ("tpu-v4", "int8", Assignment.uniform(names, 8)),
        ("tpu-v4", "mixed", turns),
        ("reference", "w8a8", Assignment.uniform(names, 8)),
        ("reference", "w4a8", Assignment.uniform(names, 4)),
        ("reference", "mixed", turns),
    ):
        yield target, label, legalize(workload, wanted, load_profile(target)).executed


def samples(task: ClassificationTask) -> list[Inputs]:
    """The first SAMPLES samples of the search split, in its batches."""
    found: list[Inputs] = []
    left = SAMPLES
    for batch in task.splits["search"]:
        if left:
            found.append(first_samples(batch.inputs, left))
            left -= batch_size(found[-1])
    return found


def answers(model: torch.nn.Module, batches: Sequence[Inputs]) -> Array:
    with torch.inference_mode():
        return np.concatenate([logits_of(forward(model, batch)).numpy() for batch in batches])


def config(bundle: Bundle, target: str, executed: Assignment) -> dict[str, object]:
    return {
        "schema": "haq.config/v1",
        "id": executed.signature[:12],
        "model": {"model": bundle.name, "weights_hash": bundle.weights_hash},
        "target": {"name": target},
        "layers": executed.to_json(),
        "quantization": {"ptq": list(DEFAULT_STACK), "observer": "mse"},
        "provenance": {"data_hash": bundle.data_hash},
    }


def anew(run: QwixRun, what: Exportable, floats: QwixRun, batches: Sequence[Inputs]) -> Array:
    """What the rules give where qwix rounds the weights of the float export."""
    provider = HaqProvider([qwix.QuantizationRule(**rule) for rule in run.facts["rules"]])
    module = qwix.quantize_model(flax_twin(what.model, run.facts["dtypes"]), provider)
    wanted = jax.eval_shape(module.init, jax.random.key(0), *floats.arrays(batches[0]))["params"]
    params = qwix.quantize_params(floats.variables["params"], wanted)
    for path, part in _static(run.variables["params"]):
        place = params
        for name in path[:-1]:
            place = place.setdefault(name, {})  # a product has no float parameter that would be there already
        place[path[-1]] = part
    apply = jax.jit(module.apply)
    return np.concatenate([np.asarray(apply({"params": params}, *run.arrays(batch)), np.float32) for batch in batches])


def _static(tree: dict[str, object], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _static(part, (*path, name))
        elif "_lhs_" in name or "_rhs_" in name:
            yield (*path, name), part


def compared(got: Array, simulated: Array, floats: Array) -> dict[str, object]:
    error = np.abs(got - simulated)
    return {
        "samples": len(got),
        "error": f"{error.max():.3g}",
        "relative_error": f"{error.max() / np.abs(simulated).max():.3g}",
        "rms_error": f"{np.sqrt((error**2).mean() / (simulated**2).mean()):.3g}",
        "quantization_error": f"{np.abs(simulated - floats).max():.3g}",
        "agreement_percent": f"{100 * (got.argmax(1) == simulated.argmax(1)).mean():.1f}",
    }


def rows(space: str) -> Iterator[dict[str, object]]:
    bundle = load_bundle(load_space(space))
    assert isinstance(bundle.task, ClassificationTask)
    folded = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(folded, bundle.example, name=space)
    batches = samples(bundle.task)
    float_run: QwixRun | None = None
    with tempfile.TemporaryDirectory() as folder:
        for target, label, executed in assignments(workload):
            what = exportable(config(bundle, target, executed), bundle, Path(folder) / "config.json")
            file = Path(folder) / f"{target}-{label}.safetensors"
            report = EXPORTERS["qwix"](what, file, {})
            run = QwixRun(file, what.model, what.example)
            float_run = float_run or run
            start = time.perf_counter()
            run(batches[0])
            seconds = time.perf_counter() - start
            simulated, floats = answers(what.simulated(), batches), answers(folded, batches)
            about = {"space": space, "target": target, "config": label, "layers": len(workload.layers)}
            got = np.concatenate([run(batch) for batch in batches])
            rounding = answers(unrounded(what), batches) - simulated
            gaps = layer_gaps(run, what, first_samples(batches[0], 8))
            yield {
                **about, "weights": "carried over", **compared(got, simulated, floats),
                "rounding_rms": f"{np.sqrt((rounding**2).mean() / (simulated**2).mean()):.3g}",
                "layer_gap": f"{max(max(gap.operand, gap.result) for gap in gaps):.3g}",
                "rules": len(run.facts["rules"]),
                "as_asked": sum(run.precisions()[line.layer] == line.asked for line in report.layers),
                "promised_bytes": size_bytes(workload, executed), "stored_bytes": run.stored_bytes,
                "seconds_to_compile": f"{seconds:.1f}",
            }  # fmt: skip
            if label != "float":
                got = anew(run, what, float_run, batches)
                yield {**about, "weights": "codes_anew", **compared(got, simulated, floats)}


def write(new: list[dict[str, object]], spaces: Sequence[str]) -> None:
    old = list(csv.DictReader(RESULTS.open())) if RESULTS.is_file() else []
    kept = [row for row in old if row["space"] not in spaces]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *new], key=lambda row: SPACES.index(str(row["space"]))))


def main(spaces: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for space in spaces:
        found = []
        for row in rows(space):
            print(*row.values(), flush=True)
            found.append(row)
        write(found, [space])


if __name__ == "__main__":
    main(sys.argv[1:] or SPACES)
