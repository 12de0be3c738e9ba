"""Writes a config as ONNX with explicit QuantizeLinear and DequantizeLinear nodes: the reference artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from haq.errors import InputError, lookup
from haq.export.onnx_capture import captured
from haq.export.onnx_draft import Style
from haq.export.onnx_tensorrt import Changed, for_tensorrt
from haq.export.onnx_write import written
from haq.export.report import ExportReport, LayerWritten
from haq.nn.exportable import Exportable
from haq.precision import Precision
from haq.textfile import write_file

FORMAT = "onnx-qdq"
DEFAULT_FLAVOUR = "cpu"


def _as_it_is(what: Exportable) -> Changed:
    return Changed(what, {})


@dataclass(frozen=True)
class Flavour:
    """For whom a file is written. changed: the config in what that runtime executes."""

    style: Style
    changed: Callable[[Exportable], Changed]
    notes: tuple[str, ...]


FLAVOURS: Mapping[str, Flavour] = {
    "cpu": Flavour(
        Style(),
        _as_it_is,
        (
            "made for ONNX Runtime on CPUs: unsigned activations with the calibrated zero-point",
            "where an integer kernel adds it, the bias is int32 in units of the product of both scales",
            "what was simulated needs sessions as `haq verify` sets them: by itself ONNX Runtime rounds more",
        ),
    ),
    "tensorrt": Flavour(
        Style(signed=True, integer_kernels=False, fp16_kernels=True),
        for_tensorrt,
        ("made for TensorRT 11, strongly typed, and not run there: no such device was at hand",),
    ),
}


def export(what: Exportable, where: Path, options: Mapping[str, str]) -> ExportReport:
    """The config at `where`, an .onnx file of opset 21. options: `flavour`, a name in FLAVOURS.

    Raises InputError on another flavour or ending, and on a network that cannot be captured or written.
    """
    name = options.get("flavour", DEFAULT_FLAVOUR)
    flavour = lookup(FLAVOURS, name, "flavour", where=FORMAT)
    if where.suffix != ".onnx":
        raise InputError("not where an ONNX file can go", where="--out", got=str(where), expected="an .onnx file")
    changed = flavour.changed(what)
    made = written(captured(what), changed.what, flavour.style)
    _label(made.model, changed.what, name)
    write_file(where, made.model.SerializeToString(), "ONNX file")
    layers = tuple(_line(layer, what, changed, made.notes.get(layer, "")) for layer in what.workload.layer_names)
    return ExportReport(FORMAT, (where,), layers, flavour.notes)


def _label(model: onnx.ModelProto, what: Exportable, flavour: str) -> None:
    """Say in the file which config it is of, so that it can be told from another one's."""
    model.producer_name, model.graph.name = "haq", what.workload.name
    about = {
        "haq.config": json.dumps(what.config),
        "haq.weights_hash": str(what.config.get("model", {}).get("weights_hash", "")),
        "haq.signature": what.executed.signature,
        "haq.layers": json.dumps(what.executed.to_json()),
        "haq.flavour": flavour,
    }
    onnx.helper.set_model_props(model, about)


def _line(layer: str, what: Exportable, changed: Changed, note: str) -> LayerWritten:
    asked, now = what.executed.precision(layer), changed.what.executed.precision(layer)
    notes = [text for text in (changed.notes.get(layer, ""), note, _emulated(now)) if text]
    return LayerWritten(layer, asked, now, "; ".join(dict.fromkeys(notes)))


def _emulated(precision: Precision) -> str:
    """What the file computes in fp32 on values of a narrower format."""
    if precision.activation.name == "bf16":
        return "values are rounded to bf16 by casts and multiplied in fp32: ONNX Runtime has no bf16 kernels on CPUs"
    if precision.activation.per_token:
        return "codes found at run time, multiplied in fp32"
    return ""
