"""The candidates that are asked before any sampler: uniform widths, protected ends, and a path of narrowing layers.

Seeds are worth more than the choice of sampler: on a 50-layer problem four uniform assignments reach a hypervolume that
500 unseeded NSGA-II trials do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haq.precision import BIT_WIDTHS
from haq.space import Group, SearchSpace
from haq.workload import LayerSpec, Workload

PATH_STEPS = 8
"""Steps from 8 bits everywhere to 4 bits everywhere, equal in weights that they narrow."""


@dataclass(frozen=True)
class Seed:
    """Levels that are asked whatever the sampler; origin: `seed:...`, or `predicted`."""

    origin: str
    levels: tuple[int, ...]


def seeds(workload: Workload, space: SearchSpace) -> tuple[Seed, ...]:
    """The seeds in the order in which they are asked, without repeats.

    Uniform 32, 16, 8, 4; 4 bits with 8 in the first and last layer; 8 bits with 16 there; 8 bits with 16 in attention
    products; then the path: the groups with most weights go from 8 to 4 bits first, the first and last layer last.
    """
    layers = {layer.name: layer for layer in workload.layers}
    ends = _ends(workload, space)
    products = {g.name for g in space.groups if all(layers[name].weight is None for name in g.layers)}
    found = [Seed(f"seed:uniform{bits}", space.uniform(bits)) for bits in reversed(BIT_WIDTHS)]
    found.append(Seed("seed:4-ends-8", _levels(space, 4, dict.fromkeys(ends, 8))))
    found.append(Seed("seed:8-ends-16", _levels(space, 8, dict.fromkeys(ends, 16))))
    found.append(Seed("seed:8-products-16", _levels(space, 8, dict.fromkeys(products, 16))))
    weighted = [g for g in space.groups if g.is_free and g.name not in products]
    order = sorted(weighted, key=lambda g: (g.name in ends, -_weights(g, layers)))
    total, narrowed, step = sum(_weights(g, layers) for g in order), 0, 1
    for count, group in enumerate(order, 1):
        narrowed += _weights(group, layers)
        if narrowed * PATH_STEPS >= total * step:
            step = narrowed * PATH_STEPS // total + 1
            narrow = dict.fromkeys((g.name for g in order[:count]), 4)
            found.append(Seed(f"seed:path{count}", _levels(space, 8, narrow)))
    distinct: dict[tuple[int, ...], Seed] = {}
    for seed in found:
        distinct.setdefault(seed.levels, seed)
    return tuple(distinct.values())


def uniform_seeds(space: SearchSpace) -> tuple[Seed, ...]:
    """Uniform 8, 4, 16 and 32: what everybody compares with. The rest is planned from sensitivities."""
    found = [Seed(f"seed:uniform{bits}", space.uniform(bits)) for bits in (8, 4, 16, 32)]
    return tuple({seed.levels: seed for seed in reversed(found)}.values())[::-1]


def _levels(space: SearchSpace, bits: int, exceptions: Mapping[str, int]) -> tuple[int, ...]:
    """One width everywhere but in the named groups."""
    return tuple(group.level_of(exceptions.get(group.name, bits)) for group in space.groups)


def _ends(workload: Workload, space: SearchSpace) -> frozenset[str]:
    """The groups of the first and the last layer that has a weight."""
    weighted = [layer.name for layer in workload.layers if layer.weight is not None]
    edge = {weighted[0], weighted[-1]} if weighted else set()
    return frozenset(group.name for group in space.groups if edge & set(group.layers))


def _weights(group: Group, layers: Mapping[str, LayerSpec]) -> int:
    """Weight elements of a group, tied ones once."""
    found = {w.key: w.elements for name in group.layers if (w := layers[name].weight) is not None}
    return sum(found.values())
