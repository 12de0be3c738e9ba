"""What a `.tflite` can say of each layer's precision: how it is written, and what is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from haq.errors import InputError
from haq.precision import FORMATS, Precision
from haq.workload import LayerSpec

FLAVOURS = ("static", "dynamic")
"""Where int8 activations take their scales from: calibration, as simulated, or every inference anew."""

How = Literal["static", "dynamic", "weights", "cast", "float"]
"""static, dynamic: integer products. weights: stored narrow, dequantized, float products. cast: weights as fp16, which
the format dequantizes too: it is how a `.tflite` says fp16."""

QUANTIZED_KINDS = ("conv1d", "conv2d", "linear")
FP16_COMPUTE = "stored as fp16; the CPU runtime computes in fp32, a GPU delegate in fp16"


@dataclass(frozen=True)
class LayerPlan:
    """One layer in the artifact. note: what the format cannot say, empty where it says all."""

    how: How
    written: Precision
    note: str = ""


def plan_layer(layer: LayerSpec, asked: Precision, flavour: str) -> LayerPlan:
    """How `asked` is written.

    Raises InputError on an unknown flavour. Facts by running litert-quantizer 0.11 and ai-edge-litert 2.3 on a CPU.
    """
    if flavour not in FLAVOURS:
        raise InputError("unknown flavour", where="--flavour", got=flavour, expected=f"one of {', '.join(FLAVOURS)}")
    if asked.weight.name == asked.activation.name == "fp32":
        return LayerPlan("float", asked)
    if layer.weight is None or layer.kind not in QUANTIZED_KINDS:
        what = "an attention product" if layer.weight is None else f"a layer of kind {layer.kind}"
        return _plan("float", "fp32/fp32", f"{what} stays fp32")
    if not asked.weight.is_integer:
        return _FLOATS.get(asked.weight.name, _wide)(asked)
    if asked.weight.group is not None:
        return _grouped(layer, asked, flavour)
    return _integer(layer, asked, flavour)


def _integer(layer: LayerSpec, asked: Precision, flavour: str) -> LayerPlan:
    weight, activation = asked.weight.name, asked.activation
    if not activation.is_integer or activation.bits > 8:
        return _plan("weights", f"{weight}/fp32", _wider(asked))
    narrow_depthwise = weight == "int4" and layer.kind == "conv2d" and layer.is_depthwise
    if activation.per_token or flavour == "dynamic":
        if narrow_depthwise:
            note = "no kernel multiplies int4 depthwise weights with inputs quantized at run time: dequantized to fp32"
            return _plan("weights", f"{weight}/fp32", note)
        note = "" if activation.per_token else "scales of the inputs are found in every inference, not in calibration"
        return _plan("dynamic", f"{weight}/int8t", note)
    note = "outside litert-quantizer's policy, though the CPU kernel takes it" if narrow_depthwise else ""
    return _plan("static", f"{weight}/int8", note)


def _grouped(layer: LayerSpec, asked: Precision, flavour: str) -> LayerPlan:
    """Blocks exist for dynamic FULLY_CONNECTED alone, with scales of bf16: int8 per channel is nearer the numbers."""
    wider = Precision(FORMATS["int8"], asked.activation)
    found = _integer(layer, wider, flavour)
    note = "no scales per group as simulated: weights requantized to int8 with a scale per channel"
    return LayerPlan(found.how, found.written, "; ".join(filter(None, (note, found.note))))


def _fp16(asked: Precision) -> LayerPlan:
    return _plan("cast", "fp16/fp16", FP16_COMPUTE)


def _bf16(asked: Precision) -> LayerPlan:
    note = f"bf16 has no equivalent: its numbers (exact in fp16 from 2^-17 to 65504) {FP16_COMPUTE}"
    return _plan("cast", "fp16/fp16", note)


def _wide(asked: Precision) -> LayerPlan:
    return _plan("float", "fp32/fp32", f"no fp32 weights beside {asked.activation} activations: fp32")


_FLOATS: dict[str, Callable[[Precision], LayerPlan]] = {"fp16": _fp16, "bf16": _bf16}


def _wider(asked: Precision) -> str:
    if asked.activation.is_integer:
        return f"{asked.activation} activations are affine, the kernel's are symmetric: dequantized to fp32"
    return "" if asked.activation.name == "fp32" else f"computed in fp32, wider than {asked.activation}"


def _plan(how: How, written: str, note: str = "") -> LayerPlan:
    return LayerPlan(how, Precision.parse(written), note)
