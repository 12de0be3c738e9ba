"""An assignment as qwix's ordered rules, one for each layer that holds integers; needs neither jax nor torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from haq.errors import InputError
from haq.precision import FORMATS, Assignment, Format, Precision
from haq.workload import LayerSpec, Workload

WEIGHTS = ("int4", "int8")
ACTIVATIONS = ("int8", "bf16", "fp16", "fp32")
CARRIED = ("conv2d", "linear", "embedding")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""haq's float formats -> jax's."""


@dataclass(frozen=True)
class Rule:
    """What becomes one `qwix.QuantizationRule`; keys that are None keep qwix's default.

    module_path: a regular expression that fits one module. tile_size: inputs that share a weight scale. act_batch_axes:
    over which a static activation scale is one. The calibration methods make qwix's range that of haq's codes, -7..7
    and -127..127, where qwix would widen it by half a step; a layer whose codes are carried over is not calibrated.
    """

    module_path: str
    weight_qtype: str
    act_qtype: str | None = None
    tile_size: int | None = None
    act_static_scale: bool | None = None
    weight_calibration_method: str | None = None
    act_calibration_method: str | None = None
    act_batch_axes: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """rules: in the order of the layers. written: layer -> what the artifact executes, None where it lacks the layer.
    notes: layer -> why, or how.

    dtypes: module path -> "bfloat16" or "float16", the format in which a layer multiplies; float32 where absent.
    """

    rules: tuple[Rule, ...]
    written: Mapping[str, Precision | None]
    notes: Mapping[str, str]
    dtypes: Mapping[str, str]


def plan(workload: Workload, executed: Assignment) -> Plan:
    """What qwix is told. A layer that it cannot hold stays a float layer, with its rounded weights where it has any."""
    rules: list[Rule] = []
    written: dict[str, Precision | None] = {}
    notes: dict[str, str] = {}
    dtypes: dict[str, str] = {}
    for layer in workload.layers:
        asked, path = executed.precision(layer.name), module_path(layer)
        reason = unexpressed(layer, asked)
        done: Precision | None = _widened(asked) if reason else asked
        if not has_place(layer):
            reason, done = "its parameters belong to no Flax layer of their own", None
        written[layer.name] = done
        if done is not None and not done.activation.is_integer and done.activation.name != "fp32":
            dtypes[path] = DTYPES[done.activation.name]
        if note := reason or _remark(layer, asked):
            notes[layer.name] = note
        if done is not None and done.weight.is_integer and layer.name == layer.module:  # later calls are of one module
            rules.append(rule(layer, done))
    return Plan(tuple(rules), written, notes, dtypes)


def module_path(layer: LayerSpec) -> str:
    """The path of the Flax module that takes the layer's place: torch's name with slashes for dots."""
    return layer.module.replace(".", "/")


def rule(layer: LayerSpec, precision: Precision) -> Rule:
    """The rule of one layer with an integer weight (of an attention product, with integer operands)."""
    weight, activation = precision.weight, precision.activation
    found: dict[str, Any] = {"module_path": re.escape(module_path(layer)), "weight_qtype": weight.plain.name}
    if layer.weight is not None:
        found |= {"weight_calibration_method": absmax(weight), "tile_size": weight.group}
    if layer.kind == "embedding" or not activation.is_integer:
        return Rule(**found)
    found |= {"act_qtype": activation.plain.name}
    if activation.per_token:
        return Rule(**found, act_calibration_method=absmax(activation))
    axes = (0,) if layer.kind == "conv2d" else tuple(range(len(layer.input_shapes[0])))
    return Rule(**found, act_static_scale=True, act_calibration_method="minmax", act_batch_axes=axes)


def absmax(fmt: Format) -> str:
    """The calibration that gives the largest magnitude the largest code: qwix gives it half a step more."""
    largest = FORMATS[fmt.plain.name].largest
    return f"absmax,{(largest + 0.5) / largest:.9f}"


def unexpressed(layer: LayerSpec, precision: Precision) -> str:
    """Why qwix cannot hold the layer as asked; empty where it can."""
    weight, activation = precision.weight, precision.activation
    if not weight.is_integer:
        return "qwix rounds no activations beside a float weight" if activation.is_integer else ""
    if weight.plain.name not in WEIGHTS or activation.plain.name not in ACTIVATIONS:
        return f"qwix has no {precision}"
    if activation.per_token and layer.kind != "linear":
        return "only a linear layer has tokens"
    if weight.group is not None and layer.weight is not None and layer.weight.depth % weight.group:
        return f"{layer.weight.depth} inputs are no multiple of {weight.group}, as qwix's tiles have to be"
    return ""


def has_place(layer: LayerSpec) -> bool:
    """Whether a Flax layer of the same name takes over what the layer has: not so for rows of packed parameters, tied
    weights and kinds of convolution that no twin has."""
    if layer.weight is None:
        return True
    return layer.kind in CARRIED and layer.weight.key == f"{layer.module}.weight"


def checked(rules: Sequence[Rule], paths: Iterable[str]) -> None:
    """Raise InputError on a rule that fits no module path, which qwix would ignore, or more than one."""
    known = tuple(paths)
    for one in rules:
        found = [path for path in known if re.fullmatch(one.module_path, path)]
        if len(found) != 1:
            raise InputError(
                "a rule has to fit one module", where=one.module_path, got=", ".join(found[:3]) or "none",
                expected="exactly one",
            )  # fmt: skip


def _widened(asked: Precision) -> Precision:
    """The float layer that a layer becomes: its rounded weights, stored in the format that it multiplies in."""
    fmt = FORMATS["fp32"] if asked.activation.is_integer else asked.activation
    return Precision(fmt, fmt)


def _remark(layer: LayerSpec, asked: Precision) -> str:
    if not asked.weight.is_integer:
        return ""
    if layer.weight is None:
        return "needs HaqProvider, which multiplies in float: qwix alone refuses two affine operands"
    if layer.kind == "embedding":
        return "tables need HaqProvider: qwix alone keeps them float"
    if layer.kind == "conv2d" and (asked.weight != asked.activation):
        return "needs HaqProvider: qwix alone refuses a convolution whose weights and activations differ"
    if asked.weight.group is not None and asked.activation.is_integer:
        return "needs HaqProvider: qwix alone would tile the activations too"
    return ""
