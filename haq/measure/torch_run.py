"""Runs the small hand-written workloads as PyTorch ops: on a GPU as a CUDA graph, on a CPU, for tests, op by op."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from haq.measure.chain import Bench
from haq.measure.timing import Call
from haq.workload import GlueOp, LayerSpec, Shape

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float16,
}
"""Format of a layer -> dtype of its activations: an int8 layer quantizes and dequantizes by itself."""

INT8_SCALE = 32.0
"""One scale for all: latency does not depend on it."""

WARM_UPS = 3
"""Runs before a graph is captured, on a stream of their own, as PyTorch asks for."""

Weights = tuple[Tensor, ...]


@dataclass(frozen=True)
class Net:
    """A bench with its tensors on a device. formats: of every layer."""

    bench: Bench
    formats: Mapping[str, str]
    weights: Mapping[str, Weights]
    inputs: Mapping[str, Tensor]

    def forward(self) -> list[Tensor]:
        """The outputs of the workload."""
        values = dict(self.inputs)
        for node in self.bench.workload.nodes:
            operands = [values[name] for name in node.inputs]
            if isinstance(node, GlueOp):
                values[node.name] = _GLUE[node.kind](node, operands)
                continue
            dtype = DTYPES[self.formats[node.name]]
            taken = [o.to(dtype) if o.is_floating_point() else o for o in operands]
            run = _int8_linear if self.formats[node.name] == "int8" else _LAYERS[_kind(node)]
            values[node.name] = run(node, taken, self.weights.get(node.name, ()))
        return [values[name] for name in self.bench.workload.outputs]


def build(bench: Bench, device: str) -> Net:
    """The bench with random weights; images are stored channels last, which tensor cores want."""
    generator = torch.Generator().manual_seed(0)
    formats = dict(zip(bench.workload.layer_names, bench.formats, strict=True))

    def draw(shape: Shape, dtype: torch.dtype) -> Tensor:
        values = (0.1 * torch.randn(shape, generator=generator)).to(device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values

    weights: dict[str, Weights] = {}
    for layer in bench.workload.layers:
        if layer.weight is not None:
            dtype = DTYPES[formats[layer.name]]
            weight, bias = draw(layer.weight.shape, dtype), draw((layer.weight.channels,), dtype)
            if formats[layer.name] == "int8":
                weight = (INT8_SCALE * weight).round().clamp(-127, 127).to(torch.int8).t().contiguous()
            weights[layer.name] = (weight,) if layer.kind == "embedding" else (weight, bias)
    first = DTYPES[bench.formats[0]] if bench.formats else torch.float32
    ids = {name for layer in bench.workload.layers if layer.kind == "embedding" for name in layer.inputs}
    inputs = {
        name: torch.zeros((1, *shape), dtype=torch.int64, device=device) if name in ids else draw((1, *shape), first)
        for name, shape in bench.workload.inputs
    }
    return Net(bench, formats, weights, inputs)


def ready(bench: Bench, device: str) -> Call:
    """A call that runs the bench once; on a GPU it returns the seconds between two events around the graph."""
    with torch.inference_mode(), _tf32(allowed="tf32" in bench.formats):
        net = build(bench, device)
        return _captured(net) if device == "cuda" else _plain(net)


def _plain(net: Net) -> Call:
    def call() -> None:
        with torch.inference_mode():
            net.forward()

    return call


def _captured(net: Net) -> Call:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            net.forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = net.forward()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def call(kept: Sequence[Tensor] = outputs) -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))

    return call


@contextlib.contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """Whether fp32 products may round their operands to TF32; as before afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _kind(layer: LayerSpec) -> str:
    return "conv" if layer.kind.startswith("conv") else layer.kind


def _conv(layer: LayerSpec, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    weight, bias = weights
    strides = [-(-i // o) for i, o in zip(layer.input_shapes[0][1:], layer.output_shape[1:], strict=True)]
    pads = [size // 2 for size in weight.shape[2:]]
    return functional.conv2d(operands[0], weight, bias, strides, pads, groups=layer.groups)


def _linear(layer: LayerSpec, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    return functional.linear(operands[0], *weights)


def _int8_linear(layer: LayerSpec, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    """Quantize, multiply to int32, dequantize: what a dynamically quantized linear layer does."""
    weight, bias = weights
    rows = operands[0].reshape(-1, operands[0].shape[-1])
    codes = (INT8_SCALE * rows).round().clamp(-127, 127).to(torch.int8)
    sums = torch._int_mm(codes, weight)
    return (sums.to(bias.dtype) * INT8_SCALE**-2 + bias).reshape(*operands[0].shape[:-1], -1)


def _embedding(layer: LayerSpec, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    return functional.embedding(operands[0], weights[0])


def _product(layer: LayerSpec, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    """Operands that are rows of all heads are cut into heads first, the second of the first product transposed."""
    heads = layer.output_shape[0]
    in_heads = [o.dim() == 4 for o in operands]
    cut = [o if o.dim() == 4 else o.reshape(*o.shape[:2], heads, -1).transpose(1, 2) for o in operands]
    return cut[0] @ (cut[1] if in_heads[0] else cut[1].transpose(-1, -2))


def _smooth(op: GlueOp, operands: Sequence[Tensor]) -> Tensor:
    if len(op.output_shape) < 3:
        return functional.gelu(operands[0])
    is_gate = op.output_shape[1:] == (1, 1)
    return functional.hardsigmoid(operands[0]) if is_gate else functional.hardswish(operands[0])


def _pool(op: GlueOp, operands: Sequence[Tensor]) -> Tensor:
    stride = -(-op.input_shapes[0][1] // op.output_shape[1])
    return functional.max_pool2d(operands[0], 3, stride, 1)


def _reshape(op: GlueOp, operands: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(operands), 1) if len(operands) > 1 else operands[0].transpose(1, 2).flatten(2)


_LAYERS: Mapping[str, Callable[[LayerSpec, Sequence[Tensor], Weights], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "embedding": _embedding,
    "matmul": _product,
}
_GLUE: Mapping[str, Callable[[GlueOp, Sequence[Tensor]], Tensor]] = {
    "activation": lambda op, o: functional.relu(o[0]),
    "smooth": _smooth,
    "add": lambda op, o: o[0] + o[1],
    "mul": lambda op, o: o[0] * (o[1] if len(o) > 1 else 0.125),
    "norm": lambda op, o: functional.layer_norm(o[0], o[0].shape[-1:]),
    "softmax": lambda op, o: functional.softmax(o[0], -1),
    "pool": _pool,
    "reduce": lambda op, o: o[0].mean((2, 3), keepdim=True),
    "reshape": _reshape,
}
