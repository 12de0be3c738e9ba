"""Compare our weight rounding with public implementations: the error that 4-bit weights leave in real layers' outputs.

    python -m venv /tmp/reconstruction && . /tmp/reconstruction/bin/activate
    pip install torch==2.13.0 && pip install -c constraints.txt -e '.[mnist,reviews,solar]'
    pip install -c constraints.txt -r experiments/accuracy/reconstruction-requirements.txt
    pip install --no-deps aimet-torch==2.42.0 brevitas==0.13.4 neural-compressor-pt==3.10
    python experiments/accuracy/reconstruction.py [SPACE ...]

(An environment of its own: aimet-torch asks for torchvision, which is not wanted beside haq, so it goes in without its
dependencies and finds an empty module of that name; its AdaRound uses nothing of it.)

Writes reconstruction.csv beside this file; rows of spaces that are not named stay. Every implementation gets the same
layer of the network with batch norm folded, the same inputs from the calibration split, and the same grid: symmetric
4-bit codes -7 ... 7 per output channel, scales from haq's technique `mse`. GPTQ: damping 0.01, activation order. The
error is the squared error of the layer's output over all its elements, relative to the output without its bias, on the
calibration inputs and on those of the search split, which nothing was fitted to. Seconds: process time, one thread.
"""

from __future__ import annotations

import csv
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from reconstruction_public import PUBLIC, Layer
from torch import Tensor, nn

from haq.nn.bundle import load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.ptq.adaround import adaround
from haq.nn.ptq.coordinate import quantease
from haq.nn.ptq.gptq import gptq
from haq.nn.ptq.grid import reconstruction_error
from haq.nn.ptq.ranges import RANGES, minmax_grid
from haq.nn.task import ClassificationTask, Inputs, forward
from haq.spacefile import load_space

LAYERS = {
    "mnist_resnet18": ("layer2.0.conv1", "layer3.0.conv1", "fc"),
    "reviews_minilm": (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.2.intermediate.dense",
        "bert.encoder.layer.5.attention.output.dense",
    ),
    "solar_efficientnet_lite0": ("_blocks.9._depthwise_conv", "_blocks.6._expand_conv", "_blocks.12._project_conv"),
}
RESULTS = Path(__file__).parent / "reconstruction.csv"
COLUMNS = ["space", "layer", "shape", "groups", "technique", "implementation", "version", "settings"]
COLUMNS += ["calibration_error", "held_out_error", "cpu_seconds"]


@dataclass(frozen=True, eq=False)
class Case:
    """A layer with its calibration inputs, as rows and Hessians of both splits."""

    layer: Layer
    rows: Tensor
    calibration: Tensor
    held_out: Tensor


def main(spaces: list[str]) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # aimet's and brevitas's powers of small numbers are many times slower without
    kept = [row for row in _read() if row["space"] not in spaces]
    for space in spaces:
        for name, case in cases(space).items():
            for values in measure(case):
                shape = "x".join(map(str, case.layer.module.weight.shape))
                row = [space, name, shape, str(case.rows.shape[0]), *values]
                kept.append(dict(zip(COLUMNS, row, strict=True)))
                print(*row, sep="\t", flush=True)
                _write(kept)


def measure(case: Case) -> Iterable[list[str]]:
    """One line per implementation: technique, implementation, version, settings, errors, seconds."""
    rows, hessian, grid = case.rows, case.calibration, case.layer.grid
    own: dict[str, Callable[[], Tensor]] = {
        "nearest": lambda: grid.codes(rows),
        "GPTQ": lambda: gptq(rows, hessian, grid),
        "QuantEase": lambda: quantease(rows, hessian, grid),
        "AdaRound": lambda: adaround(rows, hessian, grid),
    }
    version = importlib.metadata.version("haq")
    for technique, run in own.items():
        yield [technique, "haq", version, "defaults", *_tried(case, lambda run=run: grid.values(run()))]
    for public in PUBLIC:
        if public.takes(case.layer):
            version = importlib.metadata.version(public.package)
            found = _tried(case, lambda public=public: public.quantize(case.layer).reshape(rows.shape))
            yield [public.technique, public.package, version, public.settings, *found]


def _tried(case: Case, quantize: Callable[[], Tensor]) -> list[str]:
    torch.manual_seed(0)
    start = time.process_time()
    quantized = quantize().detach().double()
    seconds = time.process_time() - start
    codes = quantized / case.layer.grid.expand(case.rows.shape[2])
    assert float((codes - codes.round()).abs().max()) < 1e-3, "off the grid"
    assert float(codes.abs().max()) < 7.001, "off the grid"
    errors = [relative_error(case.rows, quantized, h) for h in (case.calibration, case.held_out)]
    return [*(f"{e:.8f}" for e in errors), f"{seconds:.2f}"]


def relative_error(rows: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    error = reconstruction_error(rows, quantized, hessian).sum()
    return float(error / reconstruction_error(rows, torch.zeros_like(rows), hessian).sum())


def cases(space: str) -> dict[str, Case]:
    bundle = load_bundle(load_space(space))
    task = bundle.task
    assert isinstance(task, ClassificationTask)
    model = fold_batch_norm(bundle.model, bundle.example)
    kept = {name: _inputs(model, name, task.calibration()) for name in LAYERS[space]}
    held_out = {name: _inputs(model, name, [b.inputs for b in task.splits["search"]]) for name in LAYERS[space]}
    return {name: _case(model.get_submodule(name), kept[name], held_out[name]) for name in LAYERS[space]}


def _inputs(model: nn.Module, name: str, batches: Iterable[Inputs]) -> Tensor:
    """What the layer reads in all batches; a linear layer's as (n, features), for texts differ in length."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].reshape(-1, args[0].shape[-1]) if isinstance(module, nn.Linear) else args[0])

    hook = layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in batches:
            forward(model, batch)
    hook.remove()
    return torch.cat(seen)


def _case(module: nn.Module, calibration: Tensor, held_out: Tensor) -> Case:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    rows = module.weight.detach().reshape(groups, len(module.weight) // groups, -1)
    grid = RANGES["mse"](rows, None, minmax_grid(rows, 7, rows.shape[2]))
    layer = Layer(module, calibration, grid)
    return Case(layer, rows.double(), hessian(module, calibration), hessian(module, held_out))


def hessian(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """(groups, k, k) mean of x xᵀ over samples and positions."""
    if isinstance(module, nn.Linear):
        return (inputs.double().mT @ inputs.double())[None] / len(inputs)
    total: Tensor = torch.zeros(())
    n = 0
    for part in inputs.split(16):
        patches = nn.functional.unfold(part, module.kernel_size, module.dilation, module.padding, module.stride)
        x = patches.reshape(len(part), module.groups, -1, patches.shape[2]).permute(1, 2, 0, 3).flatten(2).double()
        total, n = total + x @ x.mT, n + x.shape[2]
    return total / n


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(rows: list[dict[str, str]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:] or list(LAYERS))
