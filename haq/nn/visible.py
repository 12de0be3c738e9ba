"""Put a probe at a model's quantizable layers where autograd sees it, so that what the probe does can be trained.

`instrument.py` works below autograd, where gradients have been taken already. Here every call of a multiplying torch
function is caught instead, and attention kernels are split into the products that the tracer names.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from haq.errors import InputError
from haq.nn.instrument import Probe
from haq.nn.sites import Sites, running
from haq.workload import Workload


@dataclass(frozen=True)
class Call:
    """How a function multiplies. op: the aten op that the tracer would name. operands: positions of the two operands.

    names: keywords of the arguments, in their positions.
    """

    op: str
    operands: tuple[int, int]
    names: tuple[str, ...]


_CONVOLUTION = Call("aten.convolution", (0, 1), ("input", "weight", "bias", "stride", "padding"))
_LINEAR = Call("aten.mm", (0, 1), ("input", "weight", "bias"))
_MATMUL = Call("aten.mm", (0, 1), ("input", "other"))
_PRODUCT = Call("aten.mm", (0, 1), ("input", "mat2"))
_SUM = Call("aten.addmm", (1, 2), ("input", "mat1", "mat2"))
_BATCHED_SUM = Call("aten.baddbmm", (1, 2), ("input", "batch1", "batch2"))
CALLS: Mapping[Callable[..., Any], Call] = {
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv3d: _CONVOLUTION,
    F.conv_transpose1d: _CONVOLUTION,
    F.conv_transpose2d: _CONVOLUTION,
    F.conv_transpose3d: _CONVOLUTION,
    F.linear: _LINEAR,
    torch.matmul: _MATMUL,
    Tensor.matmul: _MATMUL,
    Tensor.__matmul__: _MATMUL,
    torch.mm: _PRODUCT,
    Tensor.mm: _PRODUCT,
    torch.bmm: _PRODUCT,
    Tensor.bmm: _PRODUCT,
    torch.addmm: _SUM,
    Tensor.addmm: _SUM,
    torch.baddbmm: _BATCHED_SUM,
    Tensor.baddbmm: _BATCHED_SUM,
    torch.einsum: Call("aten.addmm", (1, 2), ("equation",)),
    F.embedding: Call("aten.embedding", (1, 0), ("input", "weight")),
}
"""Functions that multiply; the weight, where there is one, is mostly the second operand."""


def instrument_visibly(model: nn.Module, workload: Workload, probe: Probe) -> None:
    """Attach the probe to every layer of `model`, in place: hand in a copy.

    `probe.parameter` is not asked: whoever trains the model has put rounded parameters in place. Raises InputError,
    when the model runs, if its layers are not the trace's: one of them multiplies in a way that is not seen here.
    """
    model.forward = _VisibleForward(model, workload, probe)


class _VisibleForward:
    """A model's forward pass, watched."""

    def __init__(self, model: nn.Module, workload: Workload, probe: Probe) -> None:
        functools.update_wrapper(self, model.forward)
        self._model, self._forward, self._probe = model, model.forward, probe
        self._layers, self._constant = frozenset(workload.layer_names), frozenset(workload.constant_products)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seen: set[str] = set()
        with _no_fastpath(), running(self._model) as sites, _Functions(sites, self._probe, self._layers, seen):
            result = self._forward(*args, **kwargs)
        if odd := sorted((self._layers - seen) or (seen - self._layers - self._constant)):
            raise InputError(
                "the layer multiplies in a way that training does not see" if odd[0] in self._layers
                else "a layer runs that is not in the trace",
                where=odd[0], got=f"{len(odd)} such layers",
                expected="torch's convolutions, linear layers, matrix products and attention",
            )  # fmt: skip
        return result


class _Functions(TorchFunctionMode):
    """Shows the probe every multiplying function of one forward pass."""

    def __init__(self, sites: Sites, probe: Probe, layers: Collection[str], seen: set[str]) -> None:
        super().__init__()
        self._sites, self._probe, self._layers, self._seen = sites, probe, layers, seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSED:
            with self:
                return COMPOSED[func](*args, **kwargs)
        if func is Tensor.__rmatmul__:
            func, args = torch.matmul, (args[1], args[0])
        call = CALLS.get(func)
        return func(*args, **kwargs) if call is None else self._multiply(func, call, list(args), dict(kwargs))

    def _multiply(self, func: Callable[..., Any], call: Call, args: list[Any], kwargs: dict[str, Any]) -> Any:
        while len(args) < len(call.names) and call.names[len(args)] in kwargs:
            args.append(kwargs.pop(call.names[len(args)]))
        whole = func is not torch.einsum or len(args) == 3
        site = self._sites.site(call.op, tuple(_as_in_aten(call, args))) if whole else None
        if site is None:
            return func(*args, **kwargs)
        self._seen.add(site.name)
        if site.name not in self._layers:
            return func(*args, **kwargs)
        if call.op != "aten.embedding":
            for index, position in enumerate(site.activations):
                args[position] = self._probe.operand(site.name, index, args[position])
        return self._probe.output(site.name, func(*args, **kwargs))


def _as_in_aten(call: Call, args: list[Any]) -> list[Any]:
    """The arguments in the order in which the aten op takes its operands."""
    return [args[1], args[0]] if call.op == "aten.embedding" else args


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention as its math kernel computes it, which is how it is traced: two products."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    # The kernel spreads the scale over both operands, whose ranges were calibrated so.
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = torch.matmul(query * factor, (key * factor).transpose(-2, -1))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    if attn_mask is not None:  # a row that may look at nothing weighs nothing, where softmax gives 0 / 0
        weights = weights.masked_fill(torch.isneginf(scores).all(-1, keepdim=True), 0.0)
    return torch.matmul(F.dropout(weights, dropout_p), value)


def _entered(function: Any) -> Callable[..., Any]:
    """The Python function without its own test for a mode, so that the calls inside it are seen."""
    return types.FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_multi_head = _entered(F.multi_head_attention_forward)
_multi_head.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__
COMPOSED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}
"""Functions with products inside them, and the same in calls that can be seen."""


@contextmanager
def _no_fastpath() -> Iterator[None]:
    """Without the fused kernel that nn.MultiheadAttention would take in inference."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
