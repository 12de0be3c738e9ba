"""Runs exported configs in Model Optimizer and torchao on 32 real samples, beside our simulation; writes nvidia.csv.

Needs an environment with both: `make test-nvidia`, then
    .venv-nvidia/bin/python experiments/export/nvidia.py
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from haq.export import modelopt, torchao
from haq.export.report import ExportReport
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.exportable import Exportable, exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import cast, executed_weight
from haq.nn.task import ClassificationTask, Inputs, first_samples, forward, logits_of
from haq.nn.trace import trace
from haq.spacefile import load_space

HERE = Path(__file__).resolve().parent
SPACES = ("mnist_resnet18", "reviews_minilm")
SAMPLES = 32
TOOLS = {"modelopt": (modelopt.export, modelopt.as_modelopt), "torchao": (torchao.export, torchao.as_torchao)}
MIXED = ("int8/int8", "int4/int8", "fp16", "int8/int8", "int4/int8", "bf16", "int8/int8", "fp32")
"""Formats of successive convolutions."""
MIXED_BLOCKS = ("int8/int8", "int4/int8", "int4g64/fp16", "fp16", "int8/bf16", "fp32")
"""Formats of a Transformer's six blocks; its attention products stay int8, its embeddings are stored in int4."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", action="append", choices=SPACES)
    parser.add_argument("--out", type=Path, default=HERE / "nvidia.csv")
    given = parser.parse_args()
    rows = []
    for space in given.space or SPACES:
        for row in measured(space):
            print(row)
            rows.append(row)
    pd.DataFrame(rows).to_csv(given.out, index=False)


def measured(space: str) -> Iterator[dict[str, Any]]:
    """One row per config and tool."""
    bundle = load_bundle(load_space(space))
    folded = fold_batch_norm(bundle.model, bundle.example)
    layers = trace(folded, bundle.example, name=space).layer_names
    task = bundle.task
    assert isinstance(task, ClassificationTask)
    batch = first_samples(task.splits["search"][0].inputs, SAMPLES)
    for config, chosen in (("uniform int8", dict.fromkeys(layers, "int8/int8")), ("mixed", mixed(layers))):
        what = exportable(as_config(bundle, chosen), bundle, Path("config.json"))
        simulated, fp32 = answers(what.simulated(), batch), answers(what.model, batch)
        for tool, (export, as_tool) in TOOLS.items():
            with tempfile.TemporaryDirectory() as folder:
                report = export(what, Path(folder) / "exported", {})
                quantized = loader(report).quantize(fold_batch_norm(bundle.model, bundle.example))
            written = {line.layer: line.written for line in report.layers if line.written is not None}
            runs, numbers = as_tool(what, written)
            artifact = replace(what, executed=runs, numbers=numbers)
            own = answers(artifact.simulated(), batch)
            found, layer_errors = with_layer_errors(quantized, artifact, batch, tuple(written))
            yield {
                "space": space, "config": config, "tool": tool, "samples": len(found),
                "layers": len(report.layers), "layers_written": len(written),
                "max_error_of_a_layer": rounded(max(layer_errors)),
                "median_error_of_a_layer": rounded(median(layer_errors)),
                **compared("written", found, own), **compared("config", found, simulated),
                **compared("fp32", found, fp32),
            }  # fmt: skip


def compared(name: str, found: Tensor, expected: Tensor) -> dict[str, float]:
    """Each sample's largest error of a logit over the largest logit: worst and median sample; same top class how often.

    The median tells arithmetic from accidents: a value within FP32 rounding of the edge between two codes tips over.
    """
    error = (found - expected).abs().amax(1) / expected.abs().max()
    agree = (found.argmax(1) == expected.argmax(1)).float().mean()
    return {
        f"max_error_{name}": rounded(error.max()),
        f"median_error_{name}": rounded(error.median()),
        f"agreement_{name}": float(agree),
    }


def with_layer_errors(
    quantized: nn.Module, artifact: Exportable, batch: Inputs, layers: tuple[str, ...]
) -> tuple[Tensor, list[float]]:
    """(the answers, each layer's largest output error over its largest output, on the very input that it read).

    Over many layers errors of rounding grow to the size of the quantization's own: one code that tips over moves what
    the next layer reads, which tips over others. Layer by layer they do not.
    """
    errors: list[float] = []

    def watch(name: str) -> None:
        precision, expected = artifact.executed.precision(name), copy.deepcopy(artifact.model.get_submodule(name))
        expected.weight.data = executed_weight(artifact.numbers.weights[f"{name}.weight"], precision)
        if getattr(expected, "bias", None) is not None:
            expected.bias.data = cast(artifact.numbers.biases[f"{name}.bias"], arithmetic(precision))
        quantizer = artifact.numbers.quantizers.get((name, 0), lambda x: cast(x, precision.activation))

        def compare(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            (x,) = args
            y = cast(expected(quantizer(x.float()) if x.is_floating_point() else x), arithmetic(precision))
            errors.append(float((y - output).abs().max() / y.abs().max()))

        quantized.get_submodule(name).register_forward_hook(compare)

    for name in layers:
        watch(name)
    return answers(quantized, batch), errors


def rounded(x: Any) -> float:
    return float(f"{float(x):.2g}")


def mixed(layers: tuple[str, ...]) -> dict[str, str]:
    """All four widths."""
    chosen = {}
    for number, name in enumerate(layers):
        _, is_block, rest = name.partition("encoder.layer.")
        if not is_block:
            chosen[name] = "int4/fp32" if "embeddings" in name else MIXED[number % len(MIXED)]
        else:
            chosen[name] = "int8" if "/matmul" in name else MIXED_BLOCKS[int(rest.split(".")[0])]
    return chosen


def as_config(bundle: Bundle, layers: dict[str, str]) -> dict[str, Any]:
    """What a search would have written, as far as an export reads it."""
    return {
        "schema": "haq.config/v1",
        "model": {"model": bundle.name, "weights_hash": bundle.weights_hash},
        "layers": layers,
        "provenance": {"data_hash": bundle.data_hash},
    }


def answers(model: nn.Module, batch: Inputs) -> Tensor:
    with torch.no_grad():
        return logits_of(forward(model, batch)).detach()


def loader(report: ExportReport) -> ModuleType:
    """The written Python file, imported as a user does."""
    path = next(file for file in report.files if file.suffix == ".py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
