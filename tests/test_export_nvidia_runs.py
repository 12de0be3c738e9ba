"""The written loaders run in Model Optimizer and torchao, each against our simulation of what it holds."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from export_nets import exportable_of, picture_bundle, text_bundle
from test_export_nvidia import PICTURES, TEXTS
from torch import Tensor, nn

from haq.export import modelopt, torchao
from haq.export.report import ExportReport
from haq.nn.exportable import Exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.quantizers import QuantizedWeight

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, which warn as they load
EXACT = 2e-3
"""Largest output error over largest output: FP32 sums in another order, and the codes that this tips over."""
NARROW = 2**-7
"""The same where a layer computes in bf16 or fp16: torchao multiplies by the scales after it has rounded the sum, and
bf16 has 8 significant bits."""


def importorskip(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name)


def loader(report: ExportReport) -> ModuleType:
    """The written Python file, imported as a user does."""
    path = next(file for file in report.files if file.suffix == ".py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(report: ExportReport) -> dict[str, object]:
    return {line.layer: line.written for line in report.layers if line.written is not None}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def batch_of(what: Exportable) -> Tensor:
    assert what.task is not None
    (batch,) = what.task.calibration()[0]
    return batch


CASES = {
    "pictures": (picture_bundle, PICTURES),
    "int8 pictures": (picture_bundle, "int8/int8"),
    "texts": (text_bundle, TEXTS),
    "int4 texts": (text_bundle, {**TEXTS, "query": "int4g32/int8", "up": "int4/fp16", "head": "int8/int8t"}),
}


@pytest.mark.parametrize("case", CASES)
def test_model_optimizer_computes_what_we_simulate_with_symmetric_ranges(case: str, tmp_path: Path) -> None:
    importorskip("modelopt")
    make, layers = CASES[case]
    bundle = make()
    what = exportable_of(bundle, layers)
    report = modelopt.export(what, tmp_path / "net", {})
    runs, tuned = modelopt.as_modelopt(what, written(report))  # type: ignore[arg-type]
    quantized = loader(report).quantize(fold_batch_norm(bundle.model, bundle.example))
    batch = batch_of(what)
    with torch.no_grad():
        found, exact = quantized(batch), replace(what, executed=runs, numbers=tuned).simulated()(batch)
    assert error(found, exact) < EXACT
    assert error(found, what.model(batch)) > EXACT  # it is quantized at all


def test_a_model_with_other_layer_names_is_refused_by_the_loader(tmp_path: Path) -> None:
    importorskip("modelopt")
    report = modelopt.export(exportable_of(picture_bundle(), PICTURES), tmp_path / "net", {})
    with pytest.raises(RuntimeError, match="stem"):
        loader(report).quantize(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("case", CASES)
def test_torchao_computes_what_we_simulate_with_ranges_per_token(case: str, tmp_path: Path) -> None:
    importorskip("torchao")
    make, layers = CASES[case]
    bundle = make()
    what = exportable_of(bundle, layers)
    report = torchao.export(what, tmp_path / "net", {})
    runs, tuned = torchao.as_torchao(what, written(report))  # type: ignore[arg-type]
    quantized = loader(report).quantize(fold_batch_norm(bundle.model, bundle.example))
    batch = batch_of(what)
    with torch.no_grad():
        found, simulated = quantized(batch), replace(what, executed=runs, numbers=tuned).simulated()(batch)
    assert error(found, simulated) < (EXACT if case == "int8 pictures" else NARROW)
    assert all(line.written is None for line in report.layers if line.layer in ("stem", "depthwise", "pointwise"))
    for line in report.layers:
        if line.written is not None and line.written.weight.is_integer:
            there, ours = quantized.get_parameter(f"{line.layer}.weight"), what.numbers.weights[f"{line.layer}.weight"]
            assert isinstance(ours, QuantizedWeight)
            assert torch.equal(there.qdata, ours.codes)
            # In a bf16 module the scales are bf16 too, with 8 significant bits.
            assert torch.allclose(there.dequantize().float(), ours.dequantize(), rtol=2**-7)
