"""Sets the scales and codes in an artifact beside the config's, channel by channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haq.nn.exportable import Exportable
from haq.nn.quantizers import QuantizedWeight, largest_code
from haq.nn.tuned import bias_key
from haq.verify.artifact import Codes, TellsCodes, TellsMore
from haq.workload import LayerSpec

TELLING = 2**20
"""A bias code of this size tells its unit to a millionth."""
LAST_DIGIT = 2.0**-23
"""Of an fp32 number, as a share of it."""
NOTHING = 1e-27
"""Products of this size are nothing beside any bias but zero."""

Floats = NDArray[np.float64]
Codewords = NDArray[np.integer[Any]]
Pair = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class Numbers:
    """scales: (layer, which) -> (the config's, the artifact's), equally many, of the channels where they mean anything.

    other_codes: layer -> (channels whose codes are not the config's, channels).
    """

    scales: Mapping[tuple[str, str], Pair]
    other_codes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Added:
    """An integer bias. values: (channels,) the config's; codes: the artifact's, in units of both scales' product.

    operand_scale, operand_levels: of what the layer reads, by the config.
    """

    values: Floats
    codes: NDArray[np.int64]
    operand_scale: float
    operand_levels: int


@dataclass(frozen=True, eq=False)
class Weight:
    """codes: (channels, k); scales: (channels,), or of groups."""

    codes: Codewords
    scales: Floats


def numbers(artifact: TellsMore, what: Exportable) -> Numbers:
    """All scales and codes that both the artifact and the config tell."""
    got, codes = artifact.scales(), artifact.codes() if isinstance(artifact, TellsCodes) else {}
    scales, others = dict(_operands(got, what)), dict[str, tuple[int, int]]()
    for layer in what.workload.layers:
        stored = None if layer.weight is None else what.numbers.weights.get(layer.weight.key)
        if not isinstance(stored, QuantizedWeight) or (key := (layer.name, "weight")) not in got:
            continue
        asked = Weight(_by_channel(stored.codes.numpy(), stored), stored.scales.double().numpy())
        held, pair, other = codes.get(layer.name), _in_order(got[key], asked.scales), len(asked.codes)
        if held is not None and (rows := _in_rows(held.weight, stored, asked)) is not None:
            pair, other = compared(asked, Weight(rows, got[key]), _added(what, layer, held))
        if pair[0].size:
            scales[key] = pair
        if held is not None:
            others[layer.name] = other, len(asked.codes)
    return Numbers(scales, others)


def compared(asked: Weight, got: Weight, added: Added | None) -> tuple[Pair, int]:
    """Scales of the channels in which they mean anything (asked, got), and how many channels have other codes.

    A scale beside codes of zero says nothing about the weight; only an integer bias may be in units of it, and then
    tells it. An exporter may have enlarged it so that such a bias fits its type: then the scale that the bias was
    written with counts as asked, and the codes must be the config's weights rounded to it.
    """
    others = (asked.codes != got.codes).any(1)
    if got.scales.shape != asked.scales.shape or asked.scales.ndim != 1:  # of groups, or not as the config has them
        return _in_order(got.scales, asked.scales), int(others.sum())
    asked_scales, fits = asked.scales, np.zeros(len(asked.codes), dtype=bool)
    if added is not None:
        unit = _unit(got.scales, added)
        fits = _is_room_for_a_bias(unit, added)
        fits[fits] = _is_rounded(asked, got, unit, fits)
        asked_scales = np.where(fits, unit, asked_scales)
    means = fits | asked.codes.any(1)
    return (asked_scales[means], got.scales[means]), int((others & ~fits).sum())


def _unit(scales: Floats, added: Added) -> Floats:
    """(channels,) the weight's scale with which the bias was written; the artifact's own where the bias is too small to
    tell."""
    tells = np.abs(added.codes) >= TELLING
    unit = scales.copy()
    unit[tells] = added.values[tells] / (added.codes[tells] * added.operand_scale)
    return unit


def _is_room_for_a_bias(unit: Floats, added: Added) -> NDArray[np.bool_]:
    """(channels,) whether a weight that is off by half of the unit changes no more than the last digit of its bias."""
    change = unit / 2 * added.operand_scale * added.operand_levels
    nothing: NDArray[np.bool_] = change <= np.maximum(LAST_DIGIT * np.abs(added.values), NOTHING)
    return nothing & (unit > 0)


def _is_rounded(asked: Weight, got: Weight, unit: Floats, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(channels among these,) whether the artifact's codes are those nearest to the config's weights."""
    exact, step = asked.codes[among] * asked.scales[among, None], unit[among, None]
    off: Floats = np.abs(got.codes[among] * step - exact).max(axis=1)
    nearest: NDArray[np.bool_] = off <= 0.501 * unit[among]
    return nearest


def _added(what: Exportable, layer: LayerSpec, codes: Codes) -> Added | None:
    key, read = bias_key(what.model, layer), what.numbers.quantizers.get((layer.name, 0))
    if codes.bias is None or key is None or read is None:
        return None
    values = what.numbers.biases[key].detach().double().numpy()
    return Added(values, codes.bias.astype(np.int64), read.scale, largest_code(read.format))


def _operands(got: Mapping[tuple[str, str], Floats], what: Exportable) -> Iterator[tuple[tuple[str, str], Pair]]:
    for (name, index), quantizer in what.numbers.quantizers.items():
        if (key := (name, f"operand {index}")) in got:
            yield key, (np.array([quantizer.scale], dtype=np.float64), got[key].reshape(-1))


def _in_rows(codes: Codewords, stored: QuantizedWeight, asked: Weight) -> Codewords | None:
    """The artifact's codes as (channels, k); None where they are not as many."""
    if codes.shape == stored.codes.shape:
        return _by_channel(codes, stored)
    return codes if codes.shape == asked.codes.shape else None


def _by_channel(codes: Codewords, stored: QuantizedWeight) -> Codewords:
    """(channels, k) of codes in the shape of the weight."""
    moved = np.moveaxis(codes, stored.channel_axis, 0)
    return moved.reshape(len(moved), -1)


def _in_order(got: Floats, asked: Floats) -> Pair:
    """Both flat (asked, got), in the config's order: a file may hold one for all, or those of groups transposed."""
    if got.size > 1 and got.ndim == 2 and got.size == asked.size:
        got = min((got, got.T), key=lambda one: float(np.abs(one.reshape(-1) - asked.reshape(-1)).max()))
    return asked.reshape(-1), got.reshape(-1)
