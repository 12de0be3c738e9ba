"""Turns any eval-mode module into a Workload by watching one forward pass, op by op, on real or meta tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from haq.errors import InputError
from haq.nn.sites import OPERANDS, Site, Sites, running, storage_key
from haq.nn.trace_layers import gemm, layer_kind, weight_spec
from haq.nn.trace_ops import CONSTANT_OPS, FREE_OPS, GLUE_KIND_OF
from haq.workload import GlueOp, LayerSpec, Shape, Unsupported, Workload

_KNOWN = frozenset(OPERANDS) | FREE_OPS | CONSTANT_OPS | frozenset(GLUE_KIND_OF)

Example = tuple[Tensor, ...] | dict[str, Tensor]


def trace(model: nn.Module, example: Example, *, name: str) -> Workload:
    """What `model` runs for one sample.

    example: positional or keyword tensors whose first axis is the batch, cut to one sample; on the model's device
    (meta too). The model keeps its state, its training flag and its hooks; it runs in eval mode here.
    Raises InputError when the model cannot run on the example or does nothing that depends on it.
    """
    return trace_modules(model, example, name=name)[0]


def trace_modules(model: nn.Module, example: Example, *, name: str) -> tuple[Workload, dict[str, str]]:
    """The workload, and for every node the name of the module that was innermost when it ran."""
    sample = tree_map_only(Tensor, lambda t: t[:1], example)
    with _one_quiet_pass(model), running(model) as sites:
        recorder = _Recorder(model, sites, sample)
        try:
            with recorder:
                outputs = model(**sample) if isinstance(sample, dict) else model(*sample)
        except InputError:
            raise
        except Exception as error:
            shapes = {k: tuple(v.shape) for k, v in _named(sample).items()}
            raise InputError(
                "the model cannot run on the example input", where=name, got=f"{type(error).__name__}: {error}",
                way_out=f"give an example that the model takes; this one was {shapes}",
            ) from error  # fmt: skip
    return recorder.workload(name, outputs), recorder.modules


def _named(sample: Example) -> dict[str, Tensor]:
    return sample if isinstance(sample, dict) else {f"input_{i}": t for i, t in enumerate(sample)}


@contextlib.contextmanager
def _one_quiet_pass(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, attention as matrix products; all as before afterwards."""
    training = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in training.items():
            module.training = mode


@dataclass(frozen=True)
class _Source:
    """What a piece of memory holds: the nodes or inputs that it came from; none for a parameter."""

    nodes: tuple[str, ...]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every op of one forward pass. It changes while the model runs; one recorder serves one pass.

    Data is followed by the memory it lives in: views share it, an in-place op takes it over. What depends neither on an
    input nor on a parameter is a constant that a compiler folds, and is not recorded.
    """

    def __init__(self, model: nn.Module, sites: Sites, sample: Example) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._sites = model, sites
        self._inputs = tuple((name, _per_sample(t)) for name, t in _named(sample).items())
        self._sources = {storage_key(t): _Source((name,)) for name, t in _named(sample).items()}
        self._alive: list[Any] = [sample]  # memory that is freed could be given to another tensor
        self._nodes: list[LayerSpec | GlueOp] = []
        self._unsupported: list[Unsupported] = []
        self.modules: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = str(func).removesuffix(f".{func._overloadname}")
        if op not in _KNOWN:
            # An op that is only a composition of others is recorded as those.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if op == "aten._local_scalar_dense" and args[0].is_meta and args[0].dtype == torch.bool:
            # There is no data on the meta device. Models ask such things of masks (is all of it there?): yes.
            return True
        result = func(*args, **kwargs)
        self._alive.append((args, result))
        self._record(op, func, args, kwargs, result)
        return result

    def _record(self, op: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if op in CONSTANT_OPS or not any(self._depends(t) for t in tensors):
            return
        read = {storage_key(t) for t in tensors}
        mutates = func._schema.is_mutable
        fresh = [t for t in tree_leaves(result) if isinstance(t, Tensor) and (mutates or storage_key(t) not in read)]
        if not fresh:
            return  # a view
        sources = tuple(dict.fromkeys(n for t in tensors for n in self._nodes_of(t)))
        if op not in FREE_OPS and not self._is_bias_of_running_layer(op, tensors):
            site = self._sites.site(op, args)
            if site is not None:
                sources = (self._add_layer(op, site, args, fresh[0]),)
            elif op in GLUE_KIND_OF:
                sources = (self._add_glue(GLUE_KIND_OF[op], tensors, fresh[0]),)
            else:
                self._unsupported.append(Unsupported(op, self._sites.module_name))
        for tensor in fresh:
            self._sources[storage_key(tensor)] = _Source(sources)

    def _depends(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._sources or self._sites.key(tensor) is not None

    def _nodes_of(self, tensor: Tensor) -> tuple[str, ...]:
        source = self._sources.get(storage_key(tensor))
        return source.nodes if source else ()

    def _is_bias_of_running_layer(self, op: str, tensors: list[Tensor]) -> bool:
        """A linear layer on strided input is a product and then an addition of its bias: one layer still."""
        bias = self._sites.module._parameters.get("bias")
        is_layer = "weight" in self._sites.module._parameters and not self._sites.module._modules
        return (
            op in ("aten.add", "aten.add_") and bias is not None and is_layer
            and any(storage_key(t) == storage_key(bias) for t in tensors)
            and self._sites.module_name in self.modules
        )  # fmt: skip

    def _add_layer(self, op: str, site: Site, args: Any, output: Tensor) -> str:
        operands = [args[i] for i in site.activations]
        products = gemm(op, args, output)
        layer = LayerSpec(
            name=site.name,
            kind=layer_kind(op, args, site),
            inputs=tuple(n for t in operands for n in self._nodes_of(t)),
            input_shapes=tuple(_per_sample(t) for t in operands),
            output_shape=_per_sample(output),
            macs=products.m * products.n * products.k * products.count if products else 0,
            gemm=products,
            weight=weight_spec(op, args, site),
            bias_elements=self._bias_elements(op, site, args),
            groups=args[8] if op == "aten.convolution" else 1,
        )
        return self._add(layer)

    def _bias_elements(self, op: str, site: Site, args: Any) -> int:
        if site.weight is None:
            return 0
        if site.in_module:
            own = self._sites.module._parameters.get("bias")
            return own.numel() if own is not None else 0
        bias = {"aten.convolution": 2, "aten.addmm": 0}.get(op)
        tensor = args[bias] if bias is not None else None
        return tensor.numel() if tensor is not None and self._sites.key(tensor) else 0

    def _add_glue(self, kind: str, tensors: list[Tensor], output: Tensor) -> str:
        data = [t for t in tensors if self._nodes_of(t)]
        return self._add(
            GlueOp(
                name=self._sites.called(self._sites.local_name(kind)),
                kind=kind,
                inputs=tuple(dict.fromkeys(n for t in data for n in self._nodes_of(t))),
                input_shapes=tuple(_per_sample(t) for t in data),
                output_shape=_per_sample(output),
                parameters=sum(t.numel() for t in tensors if self._sites.key(t)),
            )
        )

    def _add(self, node: LayerSpec | GlueOp) -> str:
        self._nodes.append(node)
        self.modules[node.name] = self._sites.module_name
        return node.name

    def workload(self, name: str, outputs: Any) -> Workload:
        """All that was recorded."""
        leaves = [t for t in tree_leaves(_plain(outputs)) if isinstance(t, Tensor)]
        ends = tuple(dict.fromkeys(n for t in leaves for n in self._nodes_of(t)))
        if not ends:
            raise InputError(
                "no output depends on the input",
                where=name,
                got=type(outputs).__name__,
                expected="a tensor, or a tuple, dict or data class of tensors",
            )
        self._nodes = _without_dead_glue(self._nodes, ends)
        renamed = self._short_names()
        self.modules = {renamed.get(n.name, n.name): self.modules[n.name] for n in self._nodes}
        nodes = tuple(
            replace(n, name=renamed.get(n.name, n.name), inputs=tuple(renamed.get(i, i) for i in n.inputs))
            for n in self._nodes
        )
        return Workload(
            name,
            self._inputs,
            nodes,
            tuple(renamed.get(n, n) for n in ends),
            self._unquantized(),
            tuple(self._unsupported),
        )

    def _short_names(self) -> dict[str, str]:
        """A leaf module that is just one glue op lends it its name (`maxpool` rather than `maxpool/pool_0`)."""
        leaves = {name for name, module in self._model.named_modules() if name and not module._modules}
        by_module: dict[str, list[str]] = {}
        for node in self._nodes:
            by_module.setdefault(self.modules[node.name], []).append(node.name)
        glue = {n.name for n in self._nodes if isinstance(n, GlueOp)}
        short: dict[str, str] = {}
        for module, names in by_module.items():
            first = [n for n in names if "@" not in n]
            if module in leaves and len(first) == 1 and first[0] in glue:
                short |= {n: module + n[len(first[0]) :] for n in names}
        return short

    def _unquantized(self) -> int:
        """Elements of all parameters (used or not, shared memory once) that are no layer's weight or bias."""
        total = sum({storage_key(p): p.numel() for p in self._model.parameters()}.values())
        layers = [n for n in self._nodes if isinstance(n, LayerSpec)]
        weights = {n.weight.key: n.weight.elements for n in layers if n.weight}
        biases = {n.module: n.bias_elements for n in layers}
        return total - sum(weights.values()) - sum(biases.values())


def _without_dead_glue(nodes: list[LayerSpec | GlueOp], ends: tuple[str, ...]) -> list[LayerSpec | GlueOp]:
    """The nodes without glue that nothing reads (a model that asks whether its mask is full, say)."""
    wanted = set(ends)
    kept = []
    for node in reversed(nodes):
        if node.name in wanted or isinstance(node, LayerSpec):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _plain(outputs: Any) -> Any:
    """Model outputs as containers that pytree opens (transformers return ordered dictionaries of their own)."""
    return dict(outputs) if hasattr(outputs, "items") else outputs


def _per_sample(tensor: Tensor) -> Shape:
    shape = tuple(tensor.shape)
    return shape[1:] if shape and shape[0] == 1 else shape
