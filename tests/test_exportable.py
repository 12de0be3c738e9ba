"""A config opened for export computes what the search measured, and the canonical export loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_nets import config_of, exportable_of, picture_bundle, text_bundle

from haq.errors import InputError
from haq.export import EXPORTERS
from haq.nn.bundle import Bundle
from haq.nn.exportable import exportable, how_quantized
from haq.nn.fold import fold_batch_norm
from haq.nn.prepare import quantizable
from haq.nn.task import forward
from haq.nn.trace import trace
from haq.precision import Assignment, Precision

MIXED = {
    "stem": "int8/int8", "depthwise": "fp16/fp16", "pointwise": "int4/int8", "head": "int8/bf16",
}  # fmt: skip
TEXT_MIXED = {
    "embed": "int8/int8", "query": "int4g32/int8", "key": "int8/int8t", "value": "fp32/fp32", "up": "int4g64/int8t",
    "matmul_0": "int8/int8", "matmul_1": "fp16/fp16", "head": "fp16/fp16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))


def outputs(model: torch.nn.Module, bundle: Bundle) -> torch.Tensor:
    assert bundle.task is not None
    with torch.inference_mode():
        found = forward(model, bundle.task.calibration()[0])
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize(
    ("bundle", "layers"),
    [
        (picture_bundle, "int8"), (picture_bundle, "int4/int8"), (picture_bundle, MIXED),
        (text_bundle, "int8"), (text_bundle, TEXT_MIXED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ptq", [("bn_fold", "mse"), ("bn_fold", "cle", "smoothquant", "gptq", "bn_reestimation")])
def test_simulated_is_what_the_simulator_builds(
    bundle: type, layers: dict[str, str] | str, ptq: tuple[str, ...], tmp_path: Path
) -> None:
    made = bundle()
    raw = {**config_of(made, layers), "quantization": {"ptq": list(ptq), "observer": "mse"}}
    what = exportable(raw, made, tmp_path / "config.json")
    folded = fold_batch_norm(made.model, made.example)
    workload = trace(folded, made.example, name=made.name)
    simulator = quantizable(folded, workload, tuple(made.task.calibration()), how_quantized(raw))
    executed = Assignment.of({name: Precision.parse(str(text)) for name, text in raw["layers"].items()})
    expected, got = outputs(simulator.build(executed), made), outputs(what.simulated(), made)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, outputs(folded, made), atol=1e-4)

    report = EXPORTERS["json"](what, tmp_path / "out.json", {})
    assert report.losses == ()
    written = json.loads((tmp_path / "out.json").read_text())
    assert report.files == (tmp_path / "out.json", tmp_path / "out.safetensors")
    again = exportable(written, made, tmp_path / "out.json")
    assert torch.equal(outputs(again.simulated(), made), got)


def test_a_finetuned_config_is_of_the_network_as_it_is() -> None:
    raw = {**config_of(picture_bundle(), "int8"), "quantization": {"ptq": ["bn_fold", "cle", "mse"], "observer": "mse"}}
    assert "cle" in how_quantized(raw).stack
    assert "cle" not in how_quantized({**raw, "provenance": {"finetune": {}}}).stack


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    bundle = picture_bundle()
    raw = config_of(bundle, "int8")
    other = {**raw, "model": {"model": "own", "weights_hash": "0" * 64}}
    with pytest.raises(InputError, match=f"weights_hash differs; got '{bundle.weights_hash}'; expected {'0' * 64}"):
        exportable(other, bundle, tmp_path / "config.json")
    with pytest.raises(InputError, match="precision is not said; got 'head: 4'"):
        exportable({**raw, "layers": {**raw["layers"], "head": 4}}, bundle, tmp_path / "config.json")  # type: ignore[dict-item]
    with pytest.raises(InputError, match="leaves layers out"):
        exportable({**raw, "layers": {"head": "int8"}}, bundle, tmp_path / "config.json")
    what = exportable_of(bundle, "int8")
    with pytest.raises(InputError, match=r"\.json"):
        EXPORTERS["json"](what, tmp_path / "out.onnx", {})
    with pytest.raises(InputError, match="no such option; got 'flavour'"):
        EXPORTERS["json"](what, tmp_path / "out.json", {"flavour": "cpu"})
