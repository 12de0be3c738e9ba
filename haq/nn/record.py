"""Writes down what one forward pass computes: which op is which node of the workload, and who feeds whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from haq.errors import InputError
from haq.nn.sites import OPERANDS, Site, Sites, storage_key
from haq.nn.trace_graph import per_sample, short_names, tensors_in, unquantized, without_dead_glue
from haq.nn.trace_layers import channels, gemm, layer_kind, weight_spec
from haq.nn.trace_ops import CONSTANT_OPS, FREE_OPS, glue_kind, op_name
from haq.workload import GlueOp, LayerSpec, Unsupported, Workload

BIAS = {"aten.addmm": 0, "aten.addmv": 0, "aten.baddbmm": 0, "aten.convolution": 2}
"""aten op -> position of what it adds to the product: a layer's bias, or another activation."""


@dataclass(frozen=True)
class Record:
    """One traced pass.

    modules: node -> the innermost module that it ran in. normalized: norm node -> the layer whose output it reads
    channel by channel, as the layer wrote it.
    """

    workload: Workload
    modules: Mapping[str, str]
    normalized: Mapping[str, str]


@dataclass(frozen=True)
class _Output:
    """A layer's result as long as nothing else has written to its memory: size and stride of its channel axis."""

    layer: str
    channels: tuple[int, int]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every op of one forward pass. It changes while the model runs; one recorder serves one pass.

    Data is followed by the memory it lives in: views share it, an in-place op takes it over. What depends neither on an
    input nor on a parameter is a constant that a compiler folds, and is not recorded.
    """

    def __init__(self, model: nn.Module, sites: Sites, sample: Mapping[str, object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._sites = model, sites
        inputs = {name: t for name, t in sample.items() if isinstance(t, Tensor)}
        self._inputs = tuple((name, per_sample(t)) for name, t in inputs.items())
        self._is_data = {name: t.is_floating_point() for name, t in inputs.items()}
        # memory -> the nodes or inputs that its content came from
        self._sources: dict[int, tuple[str, ...]] = {storage_key(t): (name,) for name, t in inputs.items()}
        self._alive: list[Any] = [sample]  # memory that is freed could be given to another tensor
        self._state: dict[int, list[Tensor]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._state.setdefault(storage_key(tensor), []).append(tensor)
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._nodes: dict[str, LayerSpec | GlueOp] = {}
        self._outputs: dict[int, _Output] = {}
        self._unsupported: list[Unsupported] = []
        self._constant_products: list[str] = []
        self._modules: dict[str, str] = {}
        self._normalized: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = op_name(func)
        if not (op in OPERANDS or op in FREE_OPS or op in CONSTANT_OPS or glue_kind(op)):
            # An op that is only a composition of others is recorded as those.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if op == "aten._local_scalar_dense" and args[0].is_meta and args[0].dtype == torch.bool:
            return self._answer(args[0])
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func._schema.is_mutable:
            self._save(tensors)
        result = func(*args, **kwargs)
        self._alive.append((args, kwargs, result))
        self._write_down(op, func._schema.is_mutable, args, tensors, result)
        return result

    def _answer(self, question: Tensor) -> bool:
        """What a branch takes on the meta device, where there is no data: of masks models ask if all of it is there."""
        if any(self._is_computed(name) for name in self._nodes_of(question)):
            raise InputError(
                "the network branches on a computed value, which the meta device does not have",
                where=self._sites.module_name or type(self._model).__name__,
                way_out="trace the model with its weights, or with random ones, on an example of real data",
            )
        return True

    def _is_computed(self, name: str) -> bool:
        """Whether it comes from a layer, or from an input that is data rather than a mask or an index."""
        node = self._nodes.get(name)
        if node is None:
            return self._is_data[name]
        return isinstance(node, LayerSpec) or any(self._is_computed(i) for i in node.inputs)

    def _save(self, tensors: list[Tensor]) -> None:
        """Keep the model's own tensors before an in-place op that may write to them."""
        for key in {storage_key(t) for t in tensors} & self._state.keys():
            self._saved += [(t, t.detach().clone()) for t in self._state.pop(key)]

    def restore(self) -> None:
        """Undo what the pass wrote to the model's parameters and buffers."""
        for tensor, value in self._saved:
            tensor.detach().copy_(value)

    def _write_down(self, op: str, mutable: bool, args: Any, tensors: list[Tensor], result: Any) -> None:
        if op in CONSTANT_OPS:
            return
        if not any(self._depends(t) for t in tensors):
            site = self._sites.site(op, args)
            if site is not None:
                self._constant_products.append(site.name)
            return
        read = {storage_key(t) for t in tensors}
        fresh = [t for t in tree_leaves(result) if isinstance(t, Tensor) and (mutable or storage_key(t) not in read)]
        if not fresh and not mutable:
            return  # a view
        sources = tuple(dict.fromkeys(n for t in tensors for n in self._nodes_of(t)))
        if op not in FREE_OPS:
            for tensor in fresh:
                self._outputs.pop(storage_key(tensor), None)
            sources = self._node(op, args, tensors, fresh) or sources
        for tensor in fresh:
            self._sources[storage_key(tensor)] = sources

    def _node(self, op: str, args: Any, tensors: list[Tensor], fresh: list[Tensor]) -> tuple[str, ...]:
        """Records the op; the names of the nodes that its result holds, none when it is not supported."""
        module = self._sites.module
        if isinstance(module, nn.RNNBase):
            self._report(f"aten.{module.mode.lower()}", once=True)
            return ()
        layer = self._layer_without_bias(op, tensors)
        if layer is not None:
            self._nodes[layer.name] = replace(layer, bias_elements=tensors[-1].numel())
            self._outputs[storage_key(fresh[0])] = _Output(layer.name, (fresh[0].shape[-1], fresh[0].stride(-1)))
            return (layer.name,)
        site = self._sites.site(op, args)
        kind = glue_kind(op)
        if site is not None:
            return (self._add_layer(op, site, args, fresh[0]),)
        if kind is None or not fresh:
            self._report(op)
            return ()
        name = self._add_glue(kind, tensors, fresh[0])
        if kind == "norm":
            self._note_layer_of_norm(name, args[0])
        return (name,)

    def _report(self, op: str, *, once: bool = False) -> None:
        entry = Unsupported(op, self._sites.module_name)
        if not (once and entry in self._unsupported):
            self._unsupported.append(entry)

    def _depends(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._sources or self._sites.key(tensor) is not None

    def _nodes_of(self, tensor: Tensor) -> tuple[str, ...]:
        return self._sources.get(storage_key(tensor), ())

    def _layer_without_bias(self, op: str, tensors: list[Tensor]) -> LayerSpec | None:
        """The running layer, if this adds its bias: on strided input a linear layer is a product and an addition."""
        bias = self._sites.module._parameters.get("bias")
        if op not in ("aten.add", "aten.add_") or bias is None or self._sites.key(tensors[-1]) != self._sites.key(bias):
            return None
        for name in self._nodes_of(tensors[0]):
            node = self._nodes.get(name)
            is_here = self._modules.get(name) == self._sites.module_name
            if isinstance(node, LayerSpec) and is_here and node.weight and not node.bias_elements:
                return node
        return None

    def _note_layer_of_norm(self, norm: str, x: Tensor) -> None:
        output = self._outputs.get(storage_key(x))
        if output is not None and x.dim() > 1 and (x.shape[1], x.stride(1)) == output.channels:
            self._normalized[norm] = output.layer

    def _add_layer(self, op: str, site: Site, args: Any, output: Tensor) -> str:
        operands = [args[i] for i in site.activations]
        products = gemm(op, args, output)
        addend = args[BIAS[op]] if op in BIAS else None
        bias = addend if addend is not None and site.weight is not None and self._sites.key(addend) else None
        found = self._sites.parameter(args[site.weight]) if site.weight is not None else None
        layer = LayerSpec(
            name=site.name,
            kind=layer_kind(op, args, site),
            inputs=tuple(n for t in operands for n in self._nodes_of(t)),
            input_shapes=tuple(per_sample(t) for t in operands),
            output_shape=per_sample(output),
            macs=products.m * products.n * products.k * products.count if products else 0,
            gemm=products,
            weight=weight_spec(op, args, site, found[1] if found else None),
            bias_elements=bias.numel() if bias is not None else 0,
            groups=args[8] if op == "aten.convolution" else 1,
        )
        self._add(layer)
        if addend is None or bias is not None or not self._depends(addend):
            axis = channels(op, site, output)
            if axis is not None:
                self._outputs[storage_key(output)] = _Output(site.name, axis)
            return site.name
        self._sources[storage_key(output)] = (site.name,)
        return self._add_glue("add", [output, addend], output)

    def _add_glue(self, kind: str, tensors: list[Tensor], output: Tensor) -> str:
        data = [t for t in tensors if self._nodes_of(t)]
        return self._add(
            GlueOp(
                name=self._sites.called(self._sites.local_name(kind)),
                kind=kind,
                inputs=tuple(dict.fromkeys(n for t in data for n in self._nodes_of(t))),
                input_shapes=tuple(per_sample(t) for t in data),
                output_shape=per_sample(output),
                parameters=sum(t.numel() for t in tensors if self._sites.key(t)),
            )
        )

    def _add(self, node: LayerSpec | GlueOp) -> str:
        self._nodes[node.name] = node
        self._modules[node.name] = self._sites.module_name
        return node.name

    def record(self, name: str, outputs: Any) -> Record:
        """All that was written down."""
        ends = tuple(dict.fromkeys(n for t in tensors_in(outputs) for n in self._nodes_of(t)))
        if not ends:
            raise InputError(
                "no output depends on the input",
                where=name,
                got=type(outputs).__name__,
                expected="a tensor, or a tuple, dict or data class of tensors",
            )
        nodes = without_dead_glue(list(self._nodes.values()), ends)
        short = short_names(self._model, nodes, self._modules)

        def named(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(short.get(n, n) for n in names)

        renamed = tuple(replace(n, name=short.get(n.name, n.name), inputs=named(n.inputs)) for n in nodes)
        unsupported = tuple(self._unsupported)
        return Record(
            Workload(
                name,
                self._inputs,
                renamed,
                named(ends),
                unquantized(self._model, nodes),
                unsupported,
                tuple(self._constant_products),
            ),
            {short.get(n.name, n.name): self._modules[n.name] for n in nodes},
            {short.get(norm, norm): layer for norm, layer in self._normalized.items()},
        )
