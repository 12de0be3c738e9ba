"""Scales the channels between a layer and its readers so that the FP32 network computes the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.ptq.cle import ChannelClip
from haq.nn.ptq.smoothquant import divide
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, first_samples, forward, logits_of
from haq.precision import FORMATS
from haq.workload import GlueOp, LayerSpec, Workload

SAMPLES = 2
"""Samples on which a pair is tried."""
TOLERANCE = 1e-4
"""How much of the output's largest magnitude rescaling may move it: fp32 rounding moves it by 1e-6."""
_PASSING = frozenset({"activation", "pool", "reduce", "reshape"})
"""Glue that may hand channels on, each scaled as it came; whether an op really does is tried out."""
_TRIED_OCTAVES = (-9, -4, 0, 3, 8)
"""Powers of two that channels are scaled with to see whether a pair is one: wide enough to show a clip at 6."""


@dataclass(frozen=True)
class Pair:
    """A layer and all that read its channels; names of layers, which are their modules' too.

    clips: ReLU6 modules on the way. products: attention products whose second operand are the channels.
    """

    producer: str
    clips: tuple[str, ...]
    products: tuple[str, ...]
    readers: tuple[str, ...]


def pairs(model: nn.Module, workload: Workload, batch: Inputs) -> Iterator[Pair]:
    """Every layer whose channels can be scaled and scaled back in its readers, in execution order.

    Unlike `haq.nn.ptq.neighbours` it looks through attention (value -> output projection) and modules that run twice.
    Each pair was tried on the batch's first samples: the output stays.
    """
    modules = dict(model.named_modules())
    for layer in workload.layers:
        pair = _pair(modules, workload, layer)
        if pair is not None and _holds(model, workload, pair, batch):
            yield pair


def pair_of(model: nn.Module, workload: Workload, batch: Inputs, layer: str) -> Pair:
    """The pair of that producer; raises InputError where its channels cannot be scaled without a trace."""
    spec = next(spec for spec in workload.layers if spec.name == layer)
    pair = _pair(dict(model.named_modules()), workload, spec)
    if pair is None or not _holds(model, workload, pair, batch):
        known = [pair.producer for pair in pairs(model, workload, batch)]
        raise InputError(
            "what this layer writes is not read by layers alone, so that no rescaling leaves the network's function",
            where=layer, expected=f"one of {', '.join(known) or 'no layer at all'}",
        )  # fmt: skip
    return pair


def _holds(model: nn.Module, workload: Workload, pair: Pair, batch: Inputs) -> bool:
    """Whether the output stays when the pair's channels are scaled."""
    count = channels(next(spec for spec in workload.layers if spec.name == pair.producer))
    powers = torch.tensor(_TRIED_OCTAVES).repeat(-(-count // len(_TRIED_OCTAVES)))[:count]
    trial = rescaled(model, workload, pair, torch.pow(2.0, powers))
    return moved(model, trial, batch) <= TOLERANCE


def moved(model: nn.Module, changed: nn.Module, batch: Inputs) -> float:
    """The largest difference of two networks' outputs as a share of their largest magnitude, on the first samples."""
    few = first_samples(batch, SAMPLES)
    with torch.inference_mode():
        exact, other = (logits_of(forward(network, few)) for network in (model, changed))
        share = float((other - exact).abs().amax() / exact.abs().amax())
    return share if math.isfinite(share) else math.inf


@torch.no_grad()
def rescaled(model: nn.Module, workload: Workload, pair: Pair, factors: Tensor) -> nn.Module:
    """A copy in which the producer's channel c is multiplied by factor c, and the readers' weights for it divided.

    factors: (channels,) positive; powers of two round nothing.
    """
    made, specs = _scaled(model, workload, pair, factors), {layer.name: layer for layer in workload.layers}
    for name in pair.readers:
        reader = made.get_submodule(name)
        weight, groups = _parameter(reader, "weight"), specs[name].groups
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        _replace(reader, "weight", (parts / factors.reshape(groups, 1, -1, 1)).reshape(weight.shape))
    return made


@torch.no_grad()
def divided(model: nn.Module, workload: Workload, pair: Pair, factors: Tensor) -> nn.Module:
    """The same, but the readers keep their weights and divide what they read, before it is quantized.

    As after SmoothQuant (`haq.nn.ptq.smoothquant`), whose buffers and hooks these are.
    """
    made, specs = _scaled(model, workload, pair, factors), {layer.name: layer for layer in workload.layers}
    for name in pair.readers:
        reader: Any = made.get_submodule(name)
        is_conv = specs[name].kind.startswith("conv")
        undo = 1 / (factors.reshape(-1, *[1] * (len(specs[name].input_shapes[0]) - 1)) if is_conv else factors)
        if hasattr(reader, "smoothing"):
            reader.smoothing = reader.smoothing * undo
        else:
            reader.register_buffer("smoothing", undo)
            reader.register_forward_pre_hook(divide)
    return made


def octaves(count: int, strength: float, rng: np.random.Generator) -> Tensor:
    """(count,) powers of two, log-uniform from 1 / strength (rounded to a power of two) to 1; both ends occur."""
    drawn = np.resize(np.arange(round(float(np.log2(strength))) + 1), count)
    return torch.from_numpy(np.exp2(-rng.permutation(drawn).astype(np.float64))).float()


def beyond_fp16(
    model: nn.Module, workload: Workload, pair: Pair, largest: float, strength: float
) -> tuple[nn.Module, float]:
    """The network whose producer gives 2^k times as much, and 2^k.

    2^k is the least power of two that takes `largest` to at least `strength` times 65504. Raises InputError where a
    scaled weight would be infinite in fp16 itself: another fault.
    """
    limit = FORMATS["fp16"].largest
    factor = 2.0 ** math.ceil(math.log2(strength * limit / largest))
    spec = next(layer for layer in workload.layers if layer.name == pair.producer)
    made = rescaled(model, workload, pair, torch.full((channels(spec),), factor))
    weight = float(_parameter(made.get_submodule(pair.producer), "weight").abs().amax())
    if weight > limit:
        raise InputError(
            "the layer's scaled weights would leave fp16 too", where=pair.producer, got=f"strength {strength:g}",
            expected=f"at most {strength * limit / weight:.3g} here", way_out="take a smaller strength",
        )  # fmt: skip
    return made, factor


def _scaled(model: nn.Module, workload: Workload, pair: Pair, factors: Tensor) -> nn.Module:
    """A copy with the producer's channels multiplied, and the ceilings behind it."""
    made = shared_copy(model)
    spec = next(layer for layer in workload.layers if layer.name == pair.producer)
    producer = made.get_submodule(pair.producer)
    _replace(producer, "weight", _parameter(producer, "weight") * _along(factors, spec))
    if producer._parameters.get("bias") is not None:
        _replace(producer, "bias", _parameter(producer, "bias") * factors)
    for name in pair.clips:
        clip = made.get_submodule(name)
        ceilings = clip.ceilings if isinstance(clip, ChannelClip) else torch.full_like(factors, 6.0)
        made.set_submodule(name, ChannelClip(ceilings * factors))
    return made


def check_same(model: nn.Module, changed: nn.Module, batch: Inputs, where: str) -> None:
    """Raises InputError if the changed network answers otherwise on the batch's first samples."""
    if (share := moved(model, changed, batch)) > TOLERANCE:
        raise InputError(
            "so strong a rescaling changes what the FP32 network computes", where=where,
            got=f"{share:.1e} of its output", expected=f"at most {TOLERANCE:g}", way_out="take a smaller strength",
        )  # fmt: skip


def channels(layer: LayerSpec) -> int:
    """Output channels of a layer with a weight."""
    assert layer.weight is not None
    return layer.weight.channels


def _pair(modules: dict[str, nn.Module], workload: Workload, layer: LayerSpec) -> Pair | None:
    """The producer's pair as far as the graph tells; None where something else reads the channels."""
    if not _is_own(modules, workload, layer) or layer.name in workload.outputs:
        return None
    nodes = {node.name: node for node in workload.nodes}
    runs = Counter(node.name.split("@")[0] for node in workload.nodes)
    clips, products, readers = [], [], []
    pending = [(layer.name, name) for name in workload.consumers[layer.name]]
    while pending:
        source, name = pending.pop(0)
        node, module = nodes[name], modules.get(name.split("@")[0])
        if name in workload.outputs:
            return None
        if isinstance(node, LayerSpec) and node.kind == "matmul":
            if node.inputs[1:] != (source,) or node.inputs[0] == source:
                return None
            products.append(name)
            pending += [(name, after) for after in workload.consumers[name]]
        elif isinstance(node, LayerSpec):
            if not _is_own(modules, workload, node) or not _reads_channels(layer, node):
                return None
            readers.append(name)
        elif not _passes(node) or (isinstance(module, nn.ReLU6 | ChannelClip) and runs[name.split("@")[0]] > 1):
            return None
        else:
            if isinstance(module, nn.ReLU6 | ChannelClip):
                clips.append(name)
            pending += [(name, after) for after in workload.consumers[name]]
    return Pair(layer.name, tuple(clips), tuple(products), tuple(readers)) if readers else None


def _is_own(modules: dict[str, nn.Module], workload: Workload, layer: LayerSpec) -> bool:
    """A convolution or linear layer that is a module of its own, runs once and shares its weight with none."""
    plain = isinstance(modules.get(layer.name), nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    keys = [other.weight.key for other in workload.layers if other.weight is not None]
    return plain and layer.weight is not None and layer.weight.key == f"{layer.name}.weight" and (
        keys.count(layer.weight.key) == 1
    )  # fmt: skip


def _passes(node: LayerSpec | GlueOp) -> bool:
    return isinstance(node, GlueOp) and node.kind in _PASSING and len(node.inputs) == 1


def _reads_channels(producer: LayerSpec, reader: LayerSpec) -> bool:
    assert reader.weight is not None
    return channels(producer) == reader.groups * reader.weight.shape[1]


def _along(factors: Tensor, layer: LayerSpec) -> Tensor:
    assert layer.weight is not None
    shape = [1] * len(layer.weight.shape)
    shape[layer.weight.channel_axis] = -1
    return factors.reshape(shape)


def _parameter(module: nn.Module, name: str) -> Tensor:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.detach()


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    module._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
