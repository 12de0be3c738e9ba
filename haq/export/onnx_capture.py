"""Captures a network as an ONNX graph in FP32 whose layers' operands, parameters and results are marked.

Markers are nodes of the domain `haq`; they stand exactly where the simulator rounds, so that one captured graph serves
every config of a network. `haq.export.onnx_write` puts numbers and casts in their places.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.func import functional_call

from haq import diskcache
from haq.errors import InputError
from haq.export.onnx_neighbours import text
from haq.export.onnx_values import DOMAIN, IR, OPSET, without_dead_nodes
from haq.nn.checkpoints import weights_hash
from haq.nn.exportable import Exportable
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, forward, logits_of
from haq.nn.tuned import joined, part
from haq.nn.visible import instrument_visibly
from haq.resources import cache_dir

VERSION = "1"
"""Part of a kept graph's name: raise it when what is captured changes."""
PREFIX = "network."


def captured(what: Exportable) -> onnx.ModelProto:
    """The marked graph of the network, without the values of marked parameters; kept in the cache.

    Its inputs have the names of the workload's, its output is called `logits`; the batch axis is free, and so is the
    second axis of integer inputs (tokens), where the network allows it. Raises InputError where it cannot be captured.
    """
    path = cache_dir() / "graphs" / f"{_identity(what)}.onnx"
    with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
        return onnx.load_model_from_string(path.read_bytes())
    model = _without_marked_values(_exported(what))
    diskcache.write_atomically(path, model.SerializeToString())
    diskcache.trim()
    return model


def _identity(what: Exportable) -> str:
    """Names what the graph depends on: weights, modules, layers, what comes out, and who writes it."""
    with torch.inference_mode():
        logits = logits_of(forward(what.model, what.example))
    parts = [
        VERSION, weights_hash(what.model), repr(what.model), what.workload.to_json(), str(logits.tolist()),
        *(f"{key} {value.dtype}" for key, value in _inputs(what).items()),
        *(version(package) for package in ("torch", "onnx", "onnxscript")),
    ]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _Marks:
    """The probe that puts a marker where the simulator rounds."""

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        return _mark("Operand", x, layer=layer, index=index)

    def output(self, layer: str, y: Tensor) -> Tensor:
        return _mark("Output", y, layer=layer)

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        return x


def _mark(kind: str, x: Tensor, **about: str | int) -> Tensor:
    attributes: dict[str, Any] = dict(about)
    marked: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", (x,), attributes, dtype=x.dtype, shape=x.shape, version=1
    )
    return marked


class _Marked(nn.Module):
    """The network with marked parameters, called with its inputs by position."""

    def __init__(self, what: Exportable) -> None:
        super().__init__()
        self.network = shared_copy(what.model)
        instrument_visibly(self.network, what.workload, _Marks())
        self._keys = (*what.numbers.weights, *what.numbers.biases)
        self._names = tuple(what.example) if isinstance(what.example, dict) else None

    def forward(self, *args: Tensor) -> Tensor:
        parts = {key: _mark("Parameter", part(self.network, key), key=key) for key in self._keys}
        values = joined(parts, self.network)
        if self._names is None:
            return logits_of(functional_call(self.network, values, args))
        return logits_of(functional_call(self.network, values, (), dict(zip(self._names, args, strict=True))))


def _exported(what: Exportable) -> onnx.ModelProto:
    """The graph as torch writes it. An axis of size one would be taken for a constant, so that two samples run."""
    inputs = _inputs(what)
    args = tuple(torch.cat([tensor, tensor]) for tensor in inputs.values())
    free = torch.export.Dim.AUTO
    axes = tuple({0: free, 1: free} if not t.is_floating_point() and t.dim() > 1 else {0: free} for t in args)
    try:
        with _quiet():
            program = torch.export.export(_Marked(what).eval(), args, dynamic_shapes={"args": axes}, strict=False)
            written: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=["logits"],
                verbose=False,
            )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # torch's exporter raises whatever it meets in a network
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise InputError(
            "torch.export cannot capture the network", where=what.workload.name, got=reason,
            expected="a forward pass without branches on data",
        ) from error  # fmt: skip
    model: onnx.ModelProto = written.model_proto
    return _checked(model, what)


def _checked(model: onnx.ModelProto, what: Exportable) -> onnx.ModelProto:
    """The graph, if it holds what it should: opset, a free batch axis, every operand's marker."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    seen = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == "Output"]
    layers = {text(node, "layer") for node in seen}
    if opsets.get("") != OPSET or model.functions or layers != set(what.workload.layer_names):
        raise InputError(
            "the captured graph is not the traced network", where=what.workload.name,
            got=f"opset {opsets.get('')}, {len(model.functions)} functions, {len(layers)} layers",
            expected=f"opset {OPSET}, no functions, {len(what.workload.layers)} layers",
        )  # fmt: skip
    for value in model.graph.input:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise InputError(
                "the network takes one batch size only", where=f"{what.workload.name}, input {value.name}",
                got=value.type.tensor_type.shape.dim[0].dim_value, expected="a free first axis",
            )  # fmt: skip
    return model


def _without_marked_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what is put in later, and without notes about the source code that it came from."""
    graph = model.graph
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == "Parameter":
            del node.input[:]
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    names = {t.name: t.name.removeprefix(PREFIX) for t in graph.initializer}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    model.ir_version = IR
    return without_dead_nodes(model)


def _inputs(what: Exportable) -> dict[str, Tensor]:
    """The example's tensors by the workload's names of inputs."""
    example: Inputs = what.example
    tensors = example if isinstance(example, dict) else dict(enumerate(example))
    names = [name for name, _ in what.workload.inputs]
    return (
        dict(zip(names, tensors.values(), strict=True))
        if len(names) == len(tensors)
        else {f"input_{name}" if isinstance(name, int) else name: tensor for name, tensor in tensors.items()}
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of torch's exporter about its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
