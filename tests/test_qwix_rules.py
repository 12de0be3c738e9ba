"""The qwix rule list says each layer once, refuses what would be ignored silently, and its numbers are haq's."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from export_nets import exportable_of, picture_bundle, text_bundle
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import InputError
from haq.export import EXPORTERS
from haq.export.qwix_params import packed, params
from haq.export.qwix_rules import Rule, absmax, checked, plan
from haq.hardware.size import size_bytes
from haq.nn.tensorfile import read_tensors
from haq.precision import FORMATS, Assignment, Precision
from haq.workload import LayerSpec, WeightSpec, Workload

MIXED = {"stem": "int8/bf16", "depthwise": "fp16/fp16", "pointwise": "int4g32/int8", "head": "int8/int8t"}
TEXT_MIXED = {
    "embed": "int8/bf16", "query": "int4g32/int8", "key": "int8/int8t", "value": "fp32/fp32", "up": "int4g32/bf16",
    "matmul_0": "int8/int8", "matmul_1": "bf16/bf16", "head": "bf16/bf16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))


def layer(name: str, kind: str, shape: tuple[int, ...], inputs: tuple[int, ...], key: str | None = None) -> LayerSpec:
    weight = WeightSpec(f"{name}.weight" if key is None else key, shape, 0)
    return LayerSpec(name, kind, ("x",), (inputs,), (1,), 1, None, weight)


def planned(one: LayerSpec, text: str) -> tuple[tuple[Rule, ...], Precision | None, str]:
    made = plan(Workload("w", (), (one,), ()), Assignment.of({one.name: Precision.parse(text)}))
    return made.rules, made.written[one.name], made.notes.get(one.name, "")


CONV = layer("layer1.0.conv1", "conv2d", (8, 4, 3, 3), (4, 9, 9))
LINEAR = layer("mlp.up", "linear", (8, 64), (12, 64))


def test_storage_only_is_a_rule_without_activations() -> None:
    rules, written, note = planned(CONV, "int4/bf16")
    assert rules == (
        Rule("layer1/0/conv1", "int4", weight_calibration_method="absmax,1.071428571"),  # 7.5 / 7
    )
    assert str(written) == "int4/bf16"
    assert "HaqProvider" in note


def test_integer_arithmetic_has_static_affine_scales_shared_by_all_but_the_channels() -> None:
    (conv,), _, note = planned(CONV, "int8/int8")
    assert (conv.act_qtype, conv.act_static_scale, conv.act_calibration_method) == ("int8", True, "minmax")
    assert (conv.act_batch_axes, note) == ((0,), "")
    (linear,), _, _ = planned(LINEAR, "int8/int8")
    assert linear.act_batch_axes == (0, 1)  # samples and tokens
    (per_token,), _, _ = planned(LINEAR, "int8/int8t")
    assert (per_token.act_static_scale, per_token.act_calibration_method) == (None, "absmax,1.003937008")  # 127.5 / 127
    (grouped,), _, _ = planned(LINEAR, "int4g32/bf16")
    assert grouped.tile_size == 32


@pytest.mark.parametrize("text", ["bf16", "fp32", "fp16"])
def test_a_float_layer_has_no_rule(text: str) -> None:
    assert planned(CONV, text) == ((), Precision.parse(text), "")


@pytest.mark.parametrize(
    ("one", "asked", "written", "note"),
    [
        (CONV, "int16/bf16", "bf16/bf16", "no int16/bf16"),
        (CONV, "int8/int16", "fp32/fp32", "no int8/int16"),
        (CONV, "int8/int8t", "fp32/fp32", "only a linear layer has tokens"),
        (CONV, "fp16/int8", "fp32/fp32", "no activations beside a float weight"),
        (layer("fc", "linear", (8, 48), (48,)), "int4g32/bf16", "bf16/bf16", "48 inputs are no multiple of 32"),
        (layer("up", "conv_transpose2d", (8, 4, 3, 3), (8, 9, 9)), "int8/bf16", None, "no Flax layer"),
        (layer("q", "linear", (8, 64), (64,), "in_proj_weight[0:8]"), "int8/bf16", None, "no Flax layer"),
    ],
)
def test_what_qwix_cannot_hold_is_named(one: LayerSpec, asked: str, written: str | None, note: str) -> None:
    rules, done, said = planned(one, asked)
    assert rules == ()
    assert done == (None if written is None else Precision.parse(written))
    assert note in said


def test_a_rule_has_to_fit_one_module() -> None:
    names = ("a/b", "a/bb", "a.b")
    checked([Rule("a/b", "int8")], names)
    with pytest.raises(InputError, match="one module; got 'none'"):
        checked([Rule("a/c", "int8")], names)
    with pytest.raises(InputError, match="got 'a/b, a/bb'"):
        checked([Rule("a/b+", "int8")], names)


def test_a_name_is_no_pattern() -> None:
    one = layer("block.c+1", "linear", (8, 64), (64,))
    (rule,), _, _ = planned(one, "int8/bf16")
    assert re.fullmatch(rule.module_path, "block/c+1")
    assert not re.fullmatch(rule.module_path, "block/cc1")
    checked([rule], ("block/c+1", "block/cc1"))


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_the_calibration_makes_qwix_choose_the_scale_of_the_largest_code(name: str) -> None:
    # qwix: scale = largest magnitude x factor / (largest code + 1/2); haq: largest magnitude / largest code.
    largest = FORMATS[name].largest
    factor = float(absmax(FORMATS[name]).partition(",")[2])
    assert 3.0 * factor / (largest + 0.5) == pytest.approx(3.0 / largest)


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=33))
def test_packed_codes_come_out_again(codes: list[int]) -> None:
    halves = packed(torch.tensor(codes, dtype=torch.int8)).numpy()
    signed = [(half ^ 8) - 8 for byte in halves.tolist() for half in (byte & 15, byte >> 4)]
    assert len(halves) == (len(codes) + 1) // 2
    assert signed[: len(codes)] == codes


@pytest.mark.parametrize(("bundle", "layers"), [(picture_bundle, MIXED), (text_bundle, TEXT_MIXED)])
def test_the_files_hold_what_was_promised(bundle: type, layers: dict[str, str], tmp_path: Path) -> None:
    what = exportable_of(bundle(), layers)
    report = EXPORTERS["qwix"](what, tmp_path / "net.safetensors", {})
    assert [file.name for file in report.files] == ["net.safetensors", "net.rules.json", "net.py"]
    about, tensors = read_tensors(report.files[0], "haq.qwix/v1")
    said = json.loads(report.files[1].read_text())
    assert said["rules"] == about["rules"]
    assert about["config"] == what.config
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    codes = {name: line.written for name, line in zip(what.executed, report.layers, strict=True)}
    lost = {name for name, written in codes.items() if written != what.executed.precision(name)}
    if not lost:
        assert stored == size_bytes(what.workload, what.executed)
    assert lost == ({"pointwise"} if "pointwise" in codes else set())  # 16 inputs are fewer than a group of 32


def test_the_snippet_says_the_rules_of_the_json(tmp_path: Path) -> None:
    report = EXPORTERS["qwix"](exportable_of(picture_bundle(), MIXED), tmp_path / "net.safetensors", {})
    said = json.loads(report.files[1].read_text())
    tree = ast.parse(report.files[2].read_text())
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    rules = values["RULES"]
    assert isinstance(rules, ast.Tuple)
    calls = [
        {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        for call in rules.elts
        if isinstance(call, ast.Call)
    ]
    assert json.loads(json.dumps(calls)) == said["rules"]
    assert ast.literal_eval(values["DTYPES"]) == said["dtypes"] == {"stem": "bfloat16", "depthwise": "float16"}
    imported = {name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
                for name in [node.module]}  # fmt: skip
    assert "haq" not in imported


def test_weights_lie_as_flax_reads_them(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "int8/bf16")
    tensors, _ = params(what, plan(what.workload, what.executed))
    stored = what.numbers.weights["stem.weight"]
    kernel = tensors["stem/kernel:codes"].numpy() * tensors["stem/kernel:scales"].numpy()
    assert kernel.shape == (3, 3, 3, 16)  # height, width, inputs, outputs
    assert np.array_equal(kernel[2, 0, 1], stored.dequantize()[:, 1, 2, 0].numpy())  # type: ignore[union-attr]
    head = tensors["head/kernel:codes"].numpy() * tensors["head/kernel:scales"].numpy()
    assert np.array_equal(head.T, what.numbers.weights["head.weight"].dequantize().numpy())  # type: ignore[union-attr]
    assert tensors["stem/bias"].dtype == torch.bfloat16


def test_a_folder_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.safetensors"):
        EXPORTERS["qwix"](exportable_of(picture_bundle(), "int8"), tmp_path / "net", {})
