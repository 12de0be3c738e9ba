"""The rule lists for Model Optimizer and torchao, and what their loss reports say; needs neither library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_nets import Texts, exportable_of, picture_bundle, text_bundle
from torch import nn

from haq.errors import InputError
from haq.export.loading import compute_in, load_numbers
from haq.export.modelopt import (
    OFF,
    as_modelopt,
    check_rules,
    export,
    largest_magnitude,
    quantizer_names,
    symmetric,
    weight_cfg,
)
from haq.export.swapping import hidden, state_of
from haq.export.torchao import Entry, TokenQuantizer, as_torchao, entries, entry
from haq.nn.exportable import Exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.quantizers import ActivationQuantizer
from haq.precision import FORMATS, Precision

INT8 = FORMATS["int8"]
PICTURES = {"stem": "int8/int8", "depthwise": "int4/int8", "pointwise": "fp16", "head": "int8/bf16"}
TEXTS = {
    "embed": "int4g32/fp32", "query": "int8/int8", "key": "int4g32/int8", "value": "int4/int8t", "matmul_0": "int8",
    "matmul_1": "int8", "up": "int4g64/bf16", "head": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> Exportable:
    return exportable_of(picture_bundle(), PICTURES)


@pytest.fixture(scope="module")
def texts() -> Exportable:
    return exportable_of(text_bundle(), TEXTS)


def test_every_quantizer_gets_one_rule_after_the_one_that_turns_all_off(pictures: Exportable, tmp_path: Path) -> None:
    export(pictures, tmp_path / "mixed", {})
    written = json.loads((tmp_path / "mixed.json").read_text())
    assert written["algorithm"] == "max"
    first, *rules = written["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    stem, depthwise = (pictures.numbers.quantizers[name, 0] for name in ("stem", "depthwise"))
    ranges = [max(q.zero_point, 255 - q.zero_point) * q.scale for q in (stem, depthwise)]
    assert [(rule["quantizer_name"], rule["cfg"]) for rule in rules] == [
        ("stem.weight_quantizer", {"num_bits": 8, "axis": 0}),
        ("stem.input_quantizer", {"num_bits": 8, "axis": None, "constant_amax": pytest.approx(ranges[0], rel=1e-6)}),
        ("depthwise.weight_quantizer", {"num_bits": 4, "axis": 0}),
        (
            "depthwise.input_quantizer",
            {"num_bits": 8, "axis": None, "constant_amax": pytest.approx(ranges[1], rel=1e-6)},
        ),
        ("head.weight_quantizer", {"num_bits": 8, "axis": 0}),
    ]


def test_the_written_loader_holds_the_list_of_the_json_with_whole_numbers_for_keys(
    texts: Exportable, tmp_path: Path
) -> None:
    export(texts, tmp_path / "texts.json", {})
    names: dict[str, object] = {}
    exec(compile((tmp_path / "texts.py").read_text(), "texts.py", "exec"), names)
    config = names["CONFIG"]
    assert isinstance(config, dict)
    assert json.loads(json.dumps(config)) == json.loads((tmp_path / "texts.json").read_text())
    by_name = {rule["quantizer_name"]: rule.get("cfg") for rule in config["quant_cfg"]}
    assert by_name["key.weight_quantizer"] == {"num_bits": 4, "block_sizes": {-1: 32}}
    assert by_name["value.input_quantizer"] == {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}}
    assert by_name["embed.weight_quantizer"] == {"num_bits": 4, "block_sizes": {-1: 32}}
    assert "embed.input_quantizer" not in by_name  # indices
    assert names["LAYERS"]["up"] == {"largest": 7, "dtype": "bfloat16"}  # type: ignore[index]
    assert callable(names["quantize"])


def test_a_rule_that_catches_two_quantizers_or_none_is_refused() -> None:
    model = nn.ModuleDict({"c1": nn.Conv2d(1, 1, 1), "c10": nn.Conv2d(1, 1, 1)})
    names = quantizer_names(model)
    check_rules([dict(OFF), {"quantizer_name": "c1.weight_quantizer", "cfg": {}}], names)
    for pattern in ("c1*weight_quantizer", "c2.weight_quantizer", "weight_quantizer"):
        with pytest.raises(InputError, match="exactly one quantizer"):
            check_rules([dict(OFF), {"quantizer_name": pattern, "cfg": {}}], names)
    with pytest.raises(InputError, match="first rule"):
        check_rules([{"quantizer_name": "c1.weight_quantizer", "cfg": {}}], names)


def test_a_symmetric_range_covers_the_larger_side() -> None:
    after_relu = ActivationQuantizer(INT8, 0.1, 0)  # 0 ... 25.5
    mostly_low = ActivationQuantizer(INT8, 0.02, 200)  # -4 ... 1.1
    assert largest_magnitude(after_relu) == pytest.approx(25.5)
    assert largest_magnitude(mostly_low) == pytest.approx(4.0)
    found = symmetric({("a", 0): after_relu, ("b", 0): mostly_low})
    assert found["a", 0].scale == pytest.approx(25.5 / 127)
    assert found["b", 0].scale == pytest.approx(4 / 127)
    # The codes -128 ... 127 are haq's 0 ... 255 with the zero-point in the middle.
    assert {quantizer.zero_point for quantizer in found.values()} == {128}
    assert found["b", 0](torch.tensor([-4.0, 0.0, 4.0])).tolist() == pytest.approx([-4, 0, 4])


def test_the_calls_of_one_module_share_the_widest_of_their_ranges() -> None:
    narrow, wide = ActivationQuantizer(INT8, 0.1, 0), ActivationQuantizer(INT8, 0.2, 0)
    found = symmetric({("fc", 0): narrow, ("fc@1", 0): wide})
    assert found["fc", 0].scale == found["fc@1", 0].scale == pytest.approx(51 / 127)


def test_the_report_says_what_a_symmetric_range_costs_and_what_cannot_be_said(
    texts: Exportable, tmp_path: Path
) -> None:
    lines = {line.layer: line for line in export(texts, tmp_path / "texts", {}).layers}
    assert list(lines) == list(texts.executed)
    product = next(name for name in lines if "matmul_0" in name)
    assert lines[product].written is None
    assert "attention product" in lines[product].note
    assert "steps 1." in lines["query"].note or "steps 2." in lines["query"].note
    assert lines["value"].written == Precision.parse("int4/int8t")
    assert lines["value"].note == ""
    assert "bfloat16" in lines["up"].note
    assert not lines["head"].is_loss


def test_layers_that_cannot_be_said_run_in_fp32_with_the_models_own_weight(pictures: Exportable) -> None:
    written = {"stem": Precision.parse("int8/int8")}
    runs, tuned = as_modelopt(pictures, written)
    assert str(runs.precision("head")) == "fp32/fp32"
    assert torch.equal(tuned.weights["head.weight"], pictures.model.get_parameter("head.weight"))  # type: ignore[arg-type]
    assert set(tuned.quantizers) == {("stem", 0)}


def test_groups_through_a_convolution_cannot_be_said(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), {**PICTURES, "pointwise": "int4g32/int8"})
    line = next(line for line in export(what, tmp_path / "x", {}).layers if line.layer == "pointwise")
    assert line.written is None
    assert "pointwise" not in (tmp_path / "x.json").read_text()
    assert weight_cfg(FORMATS["int4"], 1) == {"num_bits": 4, "axis": 1}


@pytest.mark.parametrize("which", ["pictures", "texts"])
def test_a_model_with_the_loaded_numbers_is_the_simulation_without_its_activations(
    which: str, request: pytest.FixtureRequest
) -> None:
    what: Exportable = request.getfixturevalue(which)
    written = {name: what.executed.precision(name) for name in what.executed if "matmul" not in name}
    runs, tuned = as_modelopt(what, written)
    stored = state_of(what.model, what.workload, runs, tuned)
    fresh = Texts() if which == "texts" else fold_batch_norm(picture_bundle().model, what.example)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    load_numbers(fresh, stored)
    for key, expected in tuned.weights.items():
        whole = expected if isinstance(expected, torch.Tensor) else expected.dequantize()
        assert torch.equal(fresh.get_parameter(key), whole), key


def test_a_model_whose_batch_norms_are_not_folded_is_refused(pictures: Exportable) -> None:
    runs, tuned = as_modelopt(pictures, {})
    stored = state_of(pictures.model, pictures.workload, runs, tuned)
    with pytest.raises(RuntimeError, match=r"norm\.running_mean"):
        load_numbers(picture_bundle().model, stored)


def test_a_layer_computes_in_its_own_dtype_between_float_neighbours() -> None:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    compute_in(layer, torch.bfloat16)
    # bf16 has 8 significant bits: 257 is rounded to 256 on the way in.
    result = layer(torch.tensor([[257.0, 0.0]]))
    assert result.dtype == torch.float32
    assert result.item() == 256.0


def test_modules_with_a_forward_of_their_own_are_not_swapped(pictures: Exportable) -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(2 * x)

    layer = next(layer for layer in pictures.workload.layers if layer.name == "head")
    assert hidden(layer, pictures.model, frozenset(), (nn.Linear,)) == ""
    assert "Odd" in hidden(layer, nn.ModuleDict({"head": Odd(16, 5)}), frozenset(), (nn.Linear,))
    assert "outside" in hidden(layer, pictures.model, frozenset({"head"}), (nn.Linear,))


@pytest.mark.parametrize("name", ["a b.json", "model.tflite", "1st"])
def test_a_name_that_no_python_module_can_have_is_refused(pictures: Exportable, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="Python file"):
        export(pictures, tmp_path / name, {})


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("linear", "int8/int8", Entry("Int8DynamicActivationInt8WeightConfig")),
        ("linear", "int8/bf16", Entry("Int8WeightOnlyConfig")),
        ("linear", "int4/int8t", Entry("Int8DynamicActivationIntxWeightConfig", 4)),
        ("linear", "int4g64/fp16", Entry("IntxWeightOnlyConfig", 4, 64)),
        ("embedding", "int8/int8", Entry("IntxWeightOnlyConfig", 8)),
    ],
)
def test_torchao_has_one_config_for_each_precision(kind: str, precision: str, expected: Entry) -> None:
    assert entry(kind, Precision.parse(precision)) == expected


def test_torchao_names_modules_in_order_and_leaves_float_layers_out(texts: Exportable) -> None:
    written = {name: texts.executed.precision(name) for name in ("up", "head", "key", "embed")}
    assert list(entries(texts.workload.layers, written)) == ["embed", "key", "up"]
    runs, tuned = as_torchao(texts, {"key": Precision.parse("int4g32/int8t")})
    assert str(runs.precision("key")) == "int4g32/int8t"
    assert dict(tuned.quantizers) == {("key", 0): TokenQuantizer(asymmetric=True)}


def test_a_token_takes_its_scale_from_its_own_numbers() -> None:
    x = torch.tensor([[1.0, -0.5, 0.0], [200.0, 2.0, 0.0]])
    # Symmetric: steps of 2/255 and 400/255; code 127.5 is out of reach.
    found = TokenQuantizer(asymmetric=False)(x)
    assert found[0].tolist() == pytest.approx([127 * 2 / 255, -64 * 2 / 255, 0.0])
    assert found[1].tolist() == pytest.approx([127 * 400 / 255, 400 / 255, 0.0])
    # Asymmetric: steps of 1.5/255 from -0.5 and of 200/255 from 0.
    found = TokenQuantizer(asymmetric=True)(x)
    assert found[0].tolist() == pytest.approx([170 * 1.5 / 255, -85 * 1.5 / 255, 0.0])
    assert found[1].tolist() == pytest.approx([200.0, 3 * 200 / 255, 0.0])
