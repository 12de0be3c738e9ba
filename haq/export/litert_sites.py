"""Finds every layer in the converted float network, and says where its input and its result get their scales from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.errors import InputError
from haq.export.tflite import Op, Tflite
from haq.workload import LayerSpec

KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
MOVING = ("PAD", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D")
"""Ops that only move or select numbers: they commute with rounding, and run on codes where both sides have codes."""

Range = tuple[float, float]
"""The real numbers of the codes -128 and 127."""


@dataclass(frozen=True)
class Site:
    """One layer's op. weight: tensor number of its constant."""

    layer: str
    op: Op
    weight: int

    @property
    def channel_axis(self) -> int:
        """Where output channels are: a depthwise weight is (1, height, width, channels), others (channels, ...)."""
        return 3 if self.op.kind == "DEPTHWISE_CONV_2D" else 0


def find_sites(
    file: Tflite, layers: Iterable[LayerSpec], weights: Mapping[str, NDArray[np.float32]], needed: Collection[str]
) -> list[Site]:
    """The op of every layer, found by the numbers of its weight: names of ops come and go with every fusion.

    weights: layer -> its weight as the network was converted with it, in torch's order of axes. Layers of equal weights
    are told apart by their order. Raises InputError naming a layer of `needed` that is not in the file; others without
    an op of KERNELS are left out.
    """
    free = [op for op in file.ops if op.kind in KERNELS and file.floats(op.inputs[1]) is not None]
    found = []
    for layer in layers:
        wanted = weights.get(layer.name)
        at = None if wanted is None else next((n for n, op in enumerate(free) if _is_weight(file, op, wanted)), None)
        if at is None and layer.name not in needed:
            continue
        if at is None:
            raise InputError(
                "the converted network has no op with the layer's weight", where=layer.name,
                got=f"{len(free)} ops left: {', '.join(file.name(op.outputs[0]) for op in free[:3])}",
                expected="one of " + ", ".join(KERNELS), way_out="give this layer fp32 in the config",
            )  # fmt: skip
        op = free.pop(at)
        found.append(Site(layer.name, op, op.inputs[1]))
    return found


def _is_weight(file: Tflite, op: Op, weight: NDArray[np.float32]) -> bool:
    """Whether the op multiplies with this weight: channels last in the file, and first in a depthwise op's torch."""
    constant = file.floats(op.inputs[1])
    if constant is None or constant.size != weight.size:
        return False
    axes = (0, 1) if op.kind == "DEPTHWISE_CONV_2D" else (1,)
    moved = np.moveaxis(weight, axes, range(-len(axes), 0))
    if op.kind == "DEPTHWISE_CONV_2D":  # (channels, 1, height, width) -> (height, width, channels, 1)
        moved = moved.reshape(*weight.shape[2:], -1)
    return bool(np.array_equal(constant.ravel(), moved.ravel()))


def sources(file: Tflite, tensor: int) -> list[int]:
    """The tensor and, behind ops that only move numbers, those it is made of, nearest first.

    Ends at the first tensor that several ops read or that is not moved.
    """
    path = [tensor]
    while (op := file.producers.get(path[-1])) is not None and op.kind in MOVING and len(file.readers(path[-1])) == 1:
        path.append(op.inputs[0])
    return path


@dataclass(frozen=True)
class Ranges:
    """of: tensor -> its range. moving: ops that run on codes. shared: layers whose input takes another's scale."""

    of: Mapping[int, Range]
    moving: tuple[Op, ...]
    shared: tuple[str, ...]


def input_ranges(file: Tflite, static: Iterable[Site], wanted: Mapping[str, Range]) -> Ranges:
    """Where the static layers' inputs take their codes: each tensor has one range, the first reader's.

    wanted: layer -> the range of its input quantizer. Between two static layers moving ops run on codes too, so that
    the first writes what the second reads without a change of scale.
    """
    sites = list(static)
    results = {site.op.outputs[0] for site in sites}
    ranges: dict[int, Range] = {}
    moving: list[Op] = []
    shared = []
    for site in sites:
        path = sources(file, site.op.inputs[0])
        covered = path if path[-1] in results else path[:1]
        for tensor in covered:
            if ranges.setdefault(tensor, wanted[site.layer]) != wanted[site.layer] and site.layer not in shared:
                shared.append(site.layer)
        moving += [file.producers[tensor] for tensor in covered[:-1]]
    return Ranges(ranges, tuple(dict.fromkeys(moving)), tuple(shared))
