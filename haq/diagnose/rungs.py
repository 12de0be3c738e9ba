"""The rungs that groups of layers may climb on a target, from what they run in now to the widest, and their prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from haq.allocate import PEAK, AllocationModel, Levels
from haq.errors import InputError
from haq.hardware.entries import BASE, fill_levels
from haq.hardware.groupterms import terms_of
from haq.hardware.legalize import executable, execution, meaning
from haq.hardware.schema import HardwareProfile
from haq.precision import BIT_WIDTHS, FORMATS, Assignment, Format, Precision
from haq.scaling import PLAIN, Scaling
from haq.space import build_space
from haq.terms import Floats, GroupTerms
from haq.trust import Trust
from haq.workload import LayerSpec, Workload

FP16, BF16 = Precision(FORMATS["fp16"], FORMATS["fp16"]), Precision(FORMATS["bf16"], FORMATS["bf16"])

Rung = Mapping[str, Precision]
"""What every layer of a group runs in at one level."""

EFFECTIVE_BITS = {"bf16": 10, "fp16": 13, "fp32": 26}
"""The bits of an integer format that rounds as finely: the significand's (IEEE 754), and two that an integer spends on
the numbers' spread, since a float's step follows the number and an integer's the largest one."""


@dataclass(frozen=True, eq=False)
class Pricing:
    """What may be raised on a target, and what that costs. A point is one level per group; 0 is as it runs now.

    groups: layer names, every layer in one. rungs: per group, ascending; the last is the widest that the target
    executes (decision 16). noise: per group, (levels,) the rounding noise to expect, infinite where nothing is to be
    expected of a rung: bf16 in place of fp16 rounds more coarsely and cures overflow alone, which a trial shows. terms:
    exact, converts included.
    """

    target: str
    batch: int
    trust: Trust
    groups: tuple[tuple[str, ...], ...]
    rungs: tuple[tuple[Rung, ...], ...]
    noise: tuple[Floats, ...]
    terms: GroupTerms

    @cached_property
    def now(self) -> Levels:
        return (0,) * len(self.groups)

    @cached_property
    def widest(self) -> Levels:
        """The last rung of recovery."""
        return tuple(len(rungs) - 1 for rungs in self.rungs)

    def raised(self, levels: Sequence[int]) -> tuple[tuple[str, Precision], ...]:
        """The layers that run in another precision than now, and in which."""
        return tuple(
            (layer, precision)
            for rungs, level in zip(self.rungs, levels, strict=True)
            for layer, precision in rungs[level].items()
            if precision != rungs[0][layer]
        )

    def costs(self, levels: Sequence[int]) -> dict[str, float]:
        """The modelled figures by their names in every haq file; what is unknown is absent."""
        names = (*self.terms.figures, *((PEAK,) if self.terms.peak else ()))
        model = self.model(np.zeros((len(self.groups), BASE)))
        figures = {name: float(model.value(name, [levels])[0]) for name in names}
        whole = {name: float(round(value)) for name, value in figures.items() if name in ("size_bytes", PEAK)}
        return {name: value for name, value in {**figures, **whole}.items() if not np.isnan(value)}

    def model(self, losses: Floats) -> AllocationModel:
        """What the allocator chooses from. losses: (groups, levels), infinite or NaN where there is no such level."""
        return AllocationModel(losses, self.terms.figures, self.terms.peak)


def pricing(
    workload: Workload,
    executed: Assignment,
    profile: HardwareProfile,
    *,
    batch: int = 1,
    groups: Sequence[tuple[str, ...]] | None = None,
    scaling: Scaling = PLAIN,
    only_floats: bool = False,
) -> Pricing:
    """The rungs and prices of a network that runs as `executed` on a target.

    groups: a partition of the layers; unless given, each layer is one, but for those that share a weight or a module.
    scaling: what its bit-widths mean. only_floats: no new integer numbers: a format changes to a float one or stays,
    for networks whose integer numbers were trained or repaired. Raises InputError where the target does not execute
    what runs now.
    """
    chosen = tuple(group.layers for group in build_space(workload).groups) if groups is None else tuple(groups)
    specs = {layer.name: layer for layer in workload.layers}
    for name, layer in specs.items():
        if executed.precision(name) not in executable(profile, layer):
            raise InputError(
                f"{profile.name} does not execute what the config says", where=name, got=str(executed[name]),
                expected=f"one of {', '.join(map(str, executable(profile, layer)))}",
            )  # fmt: skip
    climb = _Climb(profile, scaling, only_floats)
    rungs = tuple(climb.rungs([specs[name] for name in group], executed) for group in chosen)
    group_of = {layer: i for i, group in enumerate(chosen) for layer in group}
    # The table has as many levels for every layer: the widest is repeated.
    levels = max((len(each) for each in rungs), default=1)
    by_layer = tuple(
        tuple(rungs[group_of[name]][min(level, len(rungs[group_of[name]]) - 1)][name] for level in range(levels))
        for name in specs
    )
    entries = fill_levels(workload, profile, batch, by_layer)
    terms = terms_of(entries, batch, [group_of[name] for name in specs], [range(len(each)) for each in rungs])
    noise = tuple(np.array([_noise(specs, rung, each[0]) for rung in each]) for each in rungs)
    return Pricing(profile.name, batch, Trust.of(profile), chosen, rungs, noise, terms)


def expected_noise(layer: LayerSpec, precision: Precision) -> float:
    """Rounding noise over signal, up to a constant: 4^-bits of the weight and of what is read (6.02 dB per bit)."""
    noise = 0.0 if layer.weight is None else 4.0 ** -_effective_bits(precision.weight)
    # What an embedding reads is an index, which is never rounded.
    return noise if layer.kind == "embedding" else noise + 4.0 ** -_effective_bits(precision.activation)


def _noise(specs: Mapping[str, LayerSpec], rung: Rung, now: Rung) -> float:
    if any(precision == BF16 and now[name] == FP16 for name, precision in rung.items()):
        return math.inf
    return sum(expected_noise(specs[name], precision) for name, precision in rung.items())


@dataclass(frozen=True)
class _Climb:
    profile: HardwareProfile
    scaling: Scaling
    only_floats: bool

    def rungs(self, layers: Sequence[LayerSpec], executed: Assignment) -> tuple[Rung, ...]:
        """What the group runs in now, bf16 for what is fp16, then what each bit-width means, as far as it is wider.

        The widest is last.
        """
        now = {layer.name: executed.precision(layer.name) for layer in layers}
        farther = {layer.name: self._farther(layer, now[layer.name]) for layer in layers}
        found: list[Rung] = [now, farther] if farther != now else [now]
        for bits in BIT_WIDTHS:
            below = found[-1]
            rung = {layer.name: self._above(layer, below[layer.name], bits) for layer in layers}
            if rung != below:
                found.append(rung)
        # A network that runs in something narrower than 4 bits mean has one rung too many for the table.
        return (found[0], *found[1:][-(BASE - 1) :])

    def _farther(self, layer: LayerSpec, now: Precision) -> Precision:
        """fp32's range in as many bits."""
        return BF16 if now == FP16 and BF16 in executable(self.profile, layer) else now

    def _above(self, layer: LayerSpec, below: Precision, bits: int) -> Precision:
        option = execution(self.profile, layer, meaning(self.profile, layer, bits, self.scaling))[0]
        pairs = [(below.activation, option.activation)]
        if layer.weight is not None:
            pairs.append((below.weight, option.weight))
        if any(new.bits < old.bits for old, new in pairs) or all(new.bits == old.bits for old, new in pairs):
            return below
        if self.only_floats and any(new.is_integer and new != old for old, new in pairs):
            return below
        return option


def _effective_bits(fmt: Format) -> int:
    return EFFECTIVE_BITS.get(fmt.name, fmt.bits)
