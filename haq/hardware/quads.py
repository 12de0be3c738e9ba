"""Packs a sum over layers and pairs of layers into tables of 256 entries, one per quad of layers, and evaluates it.

Four layers with four levels each have 256 combinations: one byte picks the sum of everything that happens among them.
A bottleneck block with its shortcut is one quad, so that a ResNet-50 takes about twenty look-ups instead of 120.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haq.hardware.entries import BASE, Codes, Entries, Floats

QUAD = 4
SIZE = BASE**QUAD

Pair = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """A moment of the schedule at which the peak may be reached.

    tables: (quad, (SIZE,) change of the live bytes per sample since the step before it).
    """

    tables: tuple[tuple[int, Floats], ...]


@dataclass(frozen=True)
class Quads:
    """The packed tables. layers: (QUAD, quads) of indices into the layers, those left empty point behind the last one.

    sums: (quads, SIZE, 4) latency_ms, traffic_bytes, energy_mj and stored bytes. constant: (4,).
    steps: in the order of the schedule.
    """

    layers: NDArray[np.intp]
    sums: Floats
    constant: Floats
    steps: tuple[Step, ...]

    def codes(self, levels: Codes) -> Codes:
        """(quads, candidates) combinations of levels. levels: (layers + 1, candidates), zeros in the last row."""
        packed: Codes = levels[self.layers[0]]
        for place in range(1, QUAD):
            packed |= levels[self.layers[place]] << np.uint8(2 * place)
        return packed

    def totals(self, codes: Codes) -> Floats:
        """(candidates, 4) sums as in `sums`, each candidate's added up in the order of the quads."""
        total = np.tile(self.constant, (codes.shape[1], 1))
        part = np.empty_like(total)
        for table, code in zip(self.sums, codes, strict=True):
            # Every code is valid; `clip` spares the buffer that an error in the middle would need.
            np.take(table, code, axis=0, out=part, mode="clip")
            total += part
        return total

    def peak_bytes(self, codes: Codes) -> Floats:
        """(candidates,) largest sum of live activations per sample; exact, since bytes are multiples of a half."""
        live, peak, part = (np.zeros(codes.shape[1]) for _ in range(3))
        for step in self.steps:
            for quad, table in step.tables:
                np.take(table, codes[quad], out=part, mode="clip")
                live += part
            np.maximum(peak, live, out=peak)
        return peak


def pack(entries: Entries) -> Quads:
    """The entries as tables of quads."""
    count = len(entries.executed)
    single, pairs = _by_layer(entries)
    chosen = cover(count, pairs) or ((),)
    sums, places = np.zeros((len(chosen), SIZE, 4)), np.full((QUAD, len(chosen)), count, dtype=np.intp)
    home: dict[int, int] = {}
    for i, quad in enumerate(chosen):
        places[: len(quad), i] = quad
        for layer in quad:
            if layer not in home:
                home[layer] = i
                sums[i] += _spread(quad, (layer,), single[layer])
        for pair in itertools.combinations(sorted(quad), 2):
            if pair in pairs:
                sums[i] += _spread(quad, pair, pairs.pop(pair))
    assert not pairs
    constant = np.array([entries.per_inference_ms, 0.0, 0.0, float(entries.fixed_bytes)]) + single[count][0]
    home[count] = 0  # glue in fp32 has no place in any quad; its one level counts into the first one
    return Quads(places, sums, constant, tuple(_steps(entries, chosen, home)))


def cover(count: int, pairs: Iterable[Pair]) -> tuple[tuple[int, ...], ...]:
    """Sets of at most QUAD of `count` layers, such that every layer and both ends of every pair are in one of them.

    Greedy: a set grows by the layer that shares most pairs with it that are not covered yet. Time is linear in the
    pairs as long as each layer has few.
    """
    left: dict[int, set[int]] = {layer: set() for layer in range(count)}
    for a, b in pairs:
        left[a].add(b)
        left[b].add(a)
    sets: list[tuple[int, ...]] = []
    for first in range(count):
        while left[first]:
            grown = [first]
            while len(grown) < QUAD and (near := set().union(*(left[layer] for layer in grown)) - set(grown)):
                grown.append(min(near, key=lambda layer: (-len(left[layer] & set(grown)), layer)))
            for layer in grown:
                left[layer] -= set(grown)
            sets.append(tuple(grown))
    covered = {layer for found in sets for layer in found}
    sets += [(layer,) for layer in range(count) if layer not in covered]
    return tuple(_merged(sets))


def _merged(sets: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Neighbouring small sets as one."""
    held: tuple[int, ...] = ()
    for found in sets:
        joined = tuple(dict.fromkeys(held + found))
        if len(joined) > QUAD:
            yield held
            joined = found
        held = joined
    if held:
        yield held


def _by_layer(entries: Entries) -> tuple[Floats, dict[Pair, Floats]]:
    """The entries added up: (layers + 1, BASE, 4) per layer, and per pair (BASE, BASE, 4) by the level of each."""
    count, levels = len(entries.executed), entries.kernels.shape[1]
    single = np.zeros((count + 1, BASE, 4))
    np.add.at(single[:, :levels, :3], entries.anchors, entries.kernels)
    single[:count, :levels, 3] += entries.stored_bytes
    pairs: dict[Pair, Floats] = {}
    for (a, b), table in zip(entries.ends.tolist(), entries.reads, strict=True):
        if count in (a, b):  # glue in fp32 has one level: the cost is the other's alone
            single[min(a, b), :levels, :3] += table[:, 0] if b == count else table[0]
            continue
        key, seen = ((a, b), table) if a < b else ((b, a), table.swapaxes(0, 1))
        pairs.setdefault(key, np.zeros((BASE, BASE, 4)))[:levels, :levels, :3] += seen
    return single, pairs


def _spread(quad: Sequence[int], layers: Sequence[int], table: Floats) -> Floats:
    """(SIZE, ...) the table of some layers of the quad, by the quad's code."""
    codes = np.arange(SIZE)
    spread: Floats = table[tuple(codes >> 2 * quad.index(layer) & BASE - 1 for layer in layers)]
    return spread


def _steps(entries: Entries, chosen: Sequence[tuple[int, ...]], home: Mapping[int, int]) -> Iterator[Step]:
    """The steps that can be the peak; one that stays below what another one takes at least is left out."""
    lives, glue = entries.lives, len(entries.executed)
    least, most = lives.over_time(lives.live_bytes.min(axis=1)), lives.over_time(lives.live_bytes.max(axis=1))
    kept = (most > least.max()) | (np.arange(len(least)) == least.argmax())
    dying: dict[int, list[int]] = {}
    for kernel, last in enumerate(lives.until.tolist()):
        dying.setdefault(last, []).append(kernel)
    sizes = np.zeros((len(kept), BASE))
    sizes[:, : lives.live_bytes.shape[1]] = lives.live_bytes
    # Since the step before, per layer; the network's inputs are live at any level, like glue in fp32.
    change = {glue: np.full(BASE, lives.input_bytes if lives.last_input >= 0 else 0.0)}
    for kernel, layer in enumerate(lives.anchors.tolist()):
        change[layer] = change.get(layer, 0.0) + sizes[kernel]
        if kept[kernel]:
            yield _step(change, chosen, home)
            change = {}
        for gone in dying.get(kernel, ()):
            freed = int(lives.anchors[gone])
            change[freed] = change.get(freed, 0.0) - sizes[gone]
        if kernel == lives.last_input:
            change[glue] = change.get(glue, 0.0) - np.full(BASE, lives.input_bytes)


def _step(change: Mapping[int, Floats], chosen: Sequence[tuple[int, ...]], home: Mapping[int, int]) -> Step:
    """The change per layer as tables; what has no place in its quad has the same value at every level."""
    tables: dict[int, Floats] = {}
    for layer, row in change.items():
        quad = home[layer]
        spread = _spread(chosen[quad], (layer,), row) if layer in chosen[quad] else np.full(SIZE, row[0])
        tables[quad] = tables.get(quad, 0.0) + spread
    return Step(tuple((quad, table) for quad, table in tables.items() if table.any()))
