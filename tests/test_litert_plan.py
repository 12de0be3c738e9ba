"""What a `.tflite` can say of a precision, and that a rule which matches nothing is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from export_nets import exportable_of, picture_bundle

from haq.errors import InputError, MissingExtra
from haq.export import EXPORTERS
from haq.export.litert_plan import plan_layer
from haq.precision import Precision
from haq.workload import LayerSpec, WeightSpec


def conv(groups: int = 1, kind: str = "conv2d", out: int = 16) -> LayerSpec:
    weight = WeightSpec("layer.weight", (out, 16 // groups, 3, 3), 0)
    return LayerSpec("layer", kind, ("x",), ((16, 8, 8),), (out, 8, 8), 1, None, weight, out, groups)


PRODUCT = LayerSpec("attention/matmul_0", "matmul", ("q", "k"), ((4, 8), (8, 4)), (4, 4), 1, None)


@pytest.mark.parametrize(
    ("layer", "asked", "flavour", "how", "written"),
    [
        (conv(), "int8/int8", "static", "static", "int8/int8"),
        (conv(), "int4/int8", "static", "static", "int4/int8"),
        (conv(16), "int4/int8", "static", "static", "int4/int8"),
        (conv(4), "int4/int8", "dynamic", "dynamic", "int4/int8t"),
        (conv(), "int8/int8", "dynamic", "dynamic", "int8/int8t"),
        (conv(), "int8/int8t", "static", "dynamic", "int8/int8t"),
        (conv(16), "int4/int8", "dynamic", "weights", "int4/fp32"),
        (conv(16), "int8/int8", "dynamic", "dynamic", "int8/int8t"),
        (conv(), "int4/bf16", "static", "weights", "int4/fp32"),
        (conv(), "int8/int16", "static", "weights", "int8/fp32"),
        (conv(), "int4g32/int8", "static", "static", "int8/int8"),
        (conv(), "fp16", "static", "cast", "fp16/fp16"),
        (conv(), "bf16", "static", "cast", "fp16/fp16"),
        (conv(), "fp32", "static", "float", "fp32/fp32"),
        (conv(kind="conv_transpose2d"), "int8/int8", "static", "float", "fp32/fp32"),
        (PRODUCT, "int8/int8", "static", "float", "fp32/fp32"),
    ],
)
def test_each_precision_is_written_as_the_kernels_take_it(
    layer: LayerSpec, asked: str, flavour: str, how: str, written: str
) -> None:
    plan = plan_layer(layer, Precision.parse(asked), flavour)
    assert (plan.how, str(plan.written)) == (how, str(Precision.parse(written)))


def test_what_is_written_differently_says_why() -> None:
    for asked in ("int4/bf16", "int8/int16", "int4g32/int8", "bf16"):
        assert plan_layer(conv(), Precision.parse(asked), "static").note, asked
    assert plan_layer(conv(), Precision.parse("int8/int8"), "static").note == ""


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown flavour; got 'tensorrt'; expected one of static, dynamic"):
        plan_layer(conv(), Precision.parse("int8/int8"), "tensorrt")


@pytest.mark.skipif(find_spec("litert_torch") is not None, reason="the extra is installed")
def test_without_the_extra_the_way_out_is_named(tmp_path: Path) -> None:
    what = exportable_of(picture_bundle(), "fp32/fp32")
    with pytest.raises(MissingExtra, match=r"package 'litert-torch' is not installed.*pip install 'haq\[litert\]'"):
        EXPORTERS["litert"](what, tmp_path / "model.tflite", {})
