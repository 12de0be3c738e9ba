"""Turns a cost table into terms over the groups of a search space, so that a solver can see what adds up to a cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from haq.hardware.entries import Entries, Floats, Indices
from haq.hardware.table import CostTable
from haq.precision import BIT_WIDTHS
from haq.space import SearchSpace
from haq.terms import GroupTerms, Pair, Terms

SUMS = ("latency_ms", "traffic_bytes", "energy_mj")
"""What a kernel and a read add to, in the order of the table's entries."""


@dataclass(frozen=True)
class _Places:
    """Where layers and levels of the table are found in the space.

    group_of: (layers + 1,) the group of each layer, and -1 for glue in fp32, which stands behind the last layer and is
    in none. levels: per group, the table's level of each of the group's levels.
    """

    group_of: Indices
    levels: tuple[Indices, ...]

    def zeros(self) -> list[Floats]:
        return [np.zeros(len(levels)) for levels in self.levels]


def group_terms(table: CostTable, space: SearchSpace) -> GroupTerms:
    """The costs of `table` as terms over the space's groups.

    figures: `size_bytes`, `latency_ms`, `traffic_bytes` and `energy_mj`. table: over BIT_WIDTHS, of the workload that
    the space was built from. Totals equal `table.price` up to the rounding of sums in another order; the peak is in
    bytes before it is rounded to whole ones.
    """
    assert table.bits == BIT_WIDTHS, "the space's bit-widths must be levels of the table"
    group_of = {layer: i for i, group in enumerate(space.groups) for layer in group.layers}
    levels = [[BIT_WIDTHS.index(bits) for bits in group.bits] for group in space.groups]
    return terms_of(table.entries, table.batch, [group_of[layer] for layer in table.layers], levels)


def terms_of(entries: Entries, batch: int, group_of: Sequence[int], levels: Sequence[Sequence[int]]) -> GroupTerms:
    """The same of any entries. group_of: per layer, its group; levels: per group, the entries' level of each of its
    levels. Layers that share bytes must be in one group."""
    places = _Places(np.array([*group_of, -1], dtype=np.intp), tuple(np.array(row, dtype=np.intp) for row in levels))
    figures = {name: _sum(entries, places, kind) for kind, name in enumerate(SUMS)}
    return GroupTerms({"size_bytes": _size(entries, places), **figures}, _peak(entries, batch, places))


def _sum(entries: Entries, places: _Places, kind: int) -> Terms:
    """kind: the last index of the entries. Reads within one group are its own terms, those of glue the other end's."""
    unary = places.zeros()
    constant = entries.per_inference_ms if kind == 0 else 0.0
    pairs: dict[Pair, Floats] = {}
    for layer, row in zip(entries.anchors, entries.kernels[:, :, kind], strict=True):
        if (group := places.group_of[layer]) < 0:
            constant += row[0]
        else:
            unary[group] += row[places.levels[group]]
    for (writer, reader), matrix in zip(entries.ends, entries.reads[..., kind], strict=True):
        a, b = int(places.group_of[writer]), int(places.group_of[reader])
        if a == b:
            unary[a] += matrix[places.levels[a], places.levels[a]]
        elif a < 0:
            unary[b] += matrix[0, places.levels[b]]
        elif b < 0:
            unary[a] += matrix[places.levels[a], 0]
        else:
            passed = matrix[np.ix_(places.levels[a], places.levels[b])]
            key, passed = ((a, b), passed) if a < b else ((b, a), passed.T)
            pairs[key] = pairs.get(key, 0.0) + passed
    return Terms(float(constant), tuple(unary), {key: matrix for key, matrix in pairs.items() if np.any(matrix != 0)})


def _size(entries: Entries, places: _Places) -> Terms:
    unary = places.zeros()
    for layer, row in enumerate(entries.stored_bytes):
        group = places.group_of[layer]
        unary[group] += row[places.levels[group]]
    for shared in entries.shared:
        group, *others = {int(places.group_of[layer]) for layer in shared.layers}
        assert not others, "layers that share bytes share a choice"
        by_layer = np.zeros((len(entries.executed), len(places.levels[group])), dtype=np.uint8)
        by_layer[list(shared.layers)] = places.levels[group]
        unary[group] += shared.total_bytes(by_layer)
    return Terms(float(entries.fixed_bytes), tuple(unary))


def _peak(entries: Entries, batch: int, places: _Places) -> tuple[Terms, ...]:
    """The steps of the schedule at which the most may be live, for some choice."""
    lives = entries.lives
    steps, widest = len(lives.until), max((len(levels) for levels in places.levels), default=1)
    # (steps, groups + 1, levels): the last row is of what no choice changes, so that a step is one table.
    live = np.zeros((steps, len(places.levels) + 1, widest))
    for kernel, (layer, until, row) in enumerate(zip(lives.anchors, lives.until, lives.live_bytes, strict=True)):
        group = places.group_of[layer]
        own = np.full(widest, row[0])
        if group >= 0:
            own = row[np.pad(places.levels[group], (0, widest - len(places.levels[group])), mode="edge")]
        live[kernel : until + 1, group] += batch * own
    live[: lives.last_input + 1, -1] += batch * lives.input_bytes
    return tuple(
        Terms(float(step[-1, 0]), tuple(row[: len(levels)] for row, levels in zip(step, places.levels, strict=False)))
        for step in live[list(_undominated(live))]
    )


def _undominated(live: Floats) -> Iterator[int]:
    """The steps that can be the largest for some choice, as far as comparing two at a time tells; of equal ones one.

    live: (steps, groups, levels). Step s never exceeds step t when their difference, at its largest in every group,
    adds up to nothing.
    """
    least = live.min(axis=2)
    at_most, at_least = live.max(axis=2).sum(axis=1), least.sum(axis=1)
    kept = np.flatnonzero(at_most >= at_least.max(initial=0.0))
    alive = dict.fromkeys(kept.tolist())
    for step in kept.tolist():
        # Where the step holds nothing, the difference is at most what the other holds at least, with the other sign.
        held = np.flatnonzero(live[step].any(axis=1))
        others = np.array([other for other in alive if other != step], dtype=np.intp)
        most = (live[step, held] - live[np.ix_(others, held)]).max(axis=2).sum(axis=1)
        if np.any(most - (at_least[others] - least[np.ix_(others, held)].sum(axis=1)) <= 0):
            del alive[step]
    yield from alive
