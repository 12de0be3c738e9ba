"""Networks as ONNX files whose nodes are known by haq's layers: exported as haq folds them, with random weights."""

from __future__ import annotations

import collections
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from haq.measure.qdq import layer_nodes
from haq.nn.bundle import example_inputs
from haq.nn.fold import fold_batch_norm
from haq.nn.trace import trace
from haq.references import resolve
from haq.spacefile import SpaceFile, load_space, with_size
from haq.workload import Workload

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx.export says which modules a node ran in, outermost first, the op itself last."""


@dataclass(frozen=True)
class Network:
    """One network. layer_of: node of the ONNX model that takes a precision -> haq's layer.

    folded: layers that the exporter computed once, because they depend on no input.
    """

    name: str
    workload: Workload
    model: onnx.ModelProto
    layer_of: dict[str, str]

    @property
    def folded(self) -> tuple[str, ...]:
        run = set(self.layer_of.values())
        return tuple(name for name in self.workload.layer_names if name not in run)


def network(text: str) -> Network:
    """`resnet18`, or with another input: `reviews_minilm:128`, `solar_efficientnet_lite0:3x224x224`."""
    name, _, size = text.partition(":")
    space = load_space(name)
    if size:
        space = with_size(space, size)
    return _exported(space, text)


def _exported(space: SpaceFile, name: str) -> Network:
    assert space.model.factory is not None
    factory = resolve(space.model.factory, space.path.parent, space.extras, where=space.name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = factory(**space.model.arguments).eval()
    example = example_inputs(space.model.inputs, torch.device("cpu"))
    folded = fold_batch_norm(module, example)
    workload = trace(folded, example, name=space.name)
    positional, named = ((), example) if isinstance(example, dict) else (example, {})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            folded, positional, path, kwargs=named, opset_version=21, dynamo=True, external_data=False, verbose=False
        )
        model = onnx.load(path)
    return Network(name, workload, model, dict(_layers(model, workload)))


def _layers(model: onnx.ModelProto, workload: Workload) -> Iterator[tuple[str, str]]:
    """Node -> layer, by the module that it ran in; products of two activations are numbered within their module."""
    constants = {tensor.name for tensor in model.graph.initializer}
    products: collections.Counter[str] = collections.Counter()
    known = set(workload.layer_names)
    for node in layer_nodes(model):
        scopes = next(entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES)
        layer = json.loads(scopes.replace("'", '"'))[-2]
        if not constants & set(node.input):
            layer, products[layer] = f"{layer}/matmul_{products[layer]}", products[layer] + 1
        assert layer in known, f"{node.name} ran in {layer!r}, which is no layer of {workload.name}"
        yield node.name, layer
