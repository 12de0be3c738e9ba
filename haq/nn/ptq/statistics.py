"""Measure the inputs of layers over calibration data: the second moments and means that weight techniques need."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from haq.nn.instrument import Onlooker, instrument_ops
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, forward
from haq.workload import LayerSpec, Workload

ROWS, LEAST_ROWS, ROWS_PER_INPUT = 2**15, 2**12, 64
"""Input vectors (pixels, tokens) that are kept per layer and group: 64 for each of its k inputs, at least 4,096 and at
most 32,768, which is seven times the widest input of a ResNet."""
BUDGET_BYTES = 256_000_000
"""Second moments held at once; more layers than fit are measured in several passes over the data."""
SAMPLE_SEED = 0


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What a layer multiplies its weight with, over the calibration data.

    moments: (groups, k, k) mean of x xᵀ; means: (groups, k) mean of x; both fp32. rows: vectors that were seen. k is
    the layer's inputs per output: in features, or input channels of a group times the kernel's size.
    """

    moments: Tensor
    means: Tensor
    rows: int


def measurable(layer: LayerSpec) -> bool:
    """Whether the inputs of this layer can be measured: linear layers and plain 2-d convolutions."""
    return layer.weight is not None and layer.kind in ("linear", "conv1d", "conv2d")


def shape_of(layer: LayerSpec) -> tuple[int, int, int]:
    """(groups, rows, k) of the layer's weight, as `haq.nn.ptq.grid` defines them.

    A transposed convolution and an embedding have one group: all elements of an output channel are one row.
    """
    assert layer.weight is not None
    groups = layer.groups if layer.kind in ("conv1d", "conv2d", "conv3d") else 1
    return groups, layer.weight.channels // groups, layer.weight.elements // layer.weight.channels


def input_statistics(
    model: nn.Module, workload: Workload, batches: Sequence[Inputs], layers: Iterable[LayerSpec]
) -> dict[str, InputStatistics]:
    """Weight key -> statistics of the inputs it is multiplied with, over all layers that share it.

    model: folded FP32, in eval mode. Layers that are not `measurable`, or that convolve with circular or reflected
    borders, have none. Of many input vectors some are drawn, the same ones each time.
    """
    found: dict[str, InputStatistics] = {}
    wanted = [layer for layer in layers if measurable(layer)]
    for part in _parts(wanted):
        names = {layer.weight.key for layer in part if layer.weight}
        shared = [layer for layer in workload.layers if layer.weight and layer.weight.key in names]
        probe = _Moments(model, shared, len(batches))
        observed = shared_copy(model)
        instrument_ops(observed, workload, probe, probe.layers)
        with torch.inference_mode():
            for inputs in batches:
                forward(observed, inputs)
        found |= probe.result()
    return found


def _parts(layers: Sequence[LayerSpec]) -> list[list[LayerSpec]]:
    """The layers in parts whose second moments fit into the budget; a larger single one is a part of its own."""
    parts: list[list[LayerSpec]] = []
    held = BUDGET_BYTES + 1
    for layer in layers:
        groups, _, k = shape_of(layer)
        needed = 4 * groups * k * k
        if held + needed > BUDGET_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(layer)
        held += needed
    return parts


class _Moments(Onlooker):
    """The probe that sums x xᵀ and x. It changes as the model runs."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerSpec], batches: int) -> None:
        modules = dict(model.named_modules())
        self._layers = {layer.name: layer for layer in layers}
        self._modules = {name: modules.get(layer.module) for name, layer in self._layers.items()}
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self._generator = torch.Generator().manual_seed(SAMPLE_SEED)
        self._batches = batches

    @property
    def layers(self) -> Collection[str]:
        return frozenset(self._layers)

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        spec = self._layers[layer]
        vectors = self._vectors(spec, x)
        if index == 0 and vectors is not None:
            assert spec.weight is not None
            moments, sums, rows = self._sums.get(spec.weight.key, (0.0, 0.0, 0))
            found = vectors.transpose(1, 2) @ vectors, vectors.sum(dim=1), vectors.shape[1]
            self._sums[spec.weight.key] = moments + found[0], sums + found[1], rows + found[2]
        return x

    def result(self) -> Mapping[str, InputStatistics]:
        with torch.inference_mode(False):
            return {
                key: InputStatistics((moments / rows).clone(), (sums / rows).clone(), rows)
                for key, (moments, sums, rows) in self._sums.items()
            }

    def _vectors(self, spec: LayerSpec, x: Tensor) -> Tensor | None:
        """(groups, n, k) input vectors drawn from a batch; None where it is not known how the layer reads them."""
        groups, _, k = shape_of(spec)
        x = x.detach().float()
        if spec.kind == "linear":
            rows = x.reshape(-1, x.shape[-1])
            return rows[self._drawn(len(rows), k, x.device)].unsqueeze(0) if rows.shape[1] == k else None
        module = self._modules[spec.name]
        if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.padding_mode != "zeros":
            return None
        return self._patches(module, x, groups)

    def _patches(self, module: nn.Conv1d | nn.Conv2d, x: Tensor, groups: int) -> Tensor:
        """(groups, n, k) what the kernel covers at n output positions drawn at random; 1-d data get an axis."""
        flat = isinstance(module, nn.Conv1d)
        kernel, stride, dilation = (
            ((1, *value) if flat else tuple(value)) for value in (module.kernel_size, module.stride, module.dilation)
        )
        x = nn.functional.pad(x, module._reversed_padding_repeated_twice)
        x = x.unsqueeze(2) if flat else x
        heights, widths = (
            (size - step * (width - 1) - 1) // pace + 1
            for size, step, width, pace in zip(x.shape[2:], dilation, kernel, stride, strict=True)
        )
        k = math.prod(kernel) * x.shape[1] // groups
        drawn = self._drawn(len(x) * heights * widths, k, x.device)
        image = drawn // (heights * widths)
        tops = (drawn // widths % heights * stride[0])[:, None] + torch.arange(kernel[0], device=x.device) * dilation[0]
        lefts = (drawn % widths * stride[1])[:, None] + torch.arange(kernel[1], device=x.device) * dilation[1]
        patches = x.permute(0, 2, 3, 1)[image[:, None, None], tops[:, :, None], lefts[:, None, :]]
        by_channel = patches.permute(0, 3, 1, 2).reshape(len(drawn), groups, -1)
        return by_channel.transpose(0, 1)

    def _drawn(self, count: int, k: int, device: torch.device) -> Tensor:
        """Which of a batch's `count` vectors of k inputs are kept: all, or its share of them, without repetition."""
        share = -(-min(ROWS, max(LEAST_ROWS, ROWS_PER_INPUT * k)) // self._batches)
        if count <= share:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self._generator)[:share].to(device)
