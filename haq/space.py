"""The search space: which bit-widths each group of layers may take, from ordered pattern rules.

Rules, pins and groups name layers by pattern (`*` also crosses dots). Of several rules that match a layer the last one
wins, so write the general rule first and its exceptions after it; pins win over rules, the last pin over earlier ones.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from haq.errors import InputError, lookup
from haq.precision import BIT_WIDTHS, Assignment
from haq.workload import LayerSpec, Workload


@dataclass(frozen=True)
class Rule:
    """Layers whose module matches the pattern may take these bit-widths."""

    layers: str
    bits: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Layers that share one choice. bits: ascending; one entry means that nothing is left to choose."""

    name: str
    layers: tuple[str, ...]
    bits: tuple[int, ...]

    @property
    def is_free(self) -> bool:
        return len(self.bits) > 1

    def level_of(self, bits: int) -> int:
        """The level of the narrowest allowed bit-width that is at least `bits`, else of the widest."""
        return next((level for level, b in enumerate(self.bits) if b >= bits), len(self.bits) - 1)


@dataclass(frozen=True)
class SearchSpace:
    """Every assignment that may be asked. A point is one level per group: an index into the group's `bits`.

    layers: all layer names in the workload's order; every one belongs to exactly one group.
    yielded: natural ties that rules and pins take apart, in whole or in part.
    """

    layers: tuple[str, ...]
    groups: tuple[Group, ...]
    yielded: tuple[tuple[str, ...], ...] = ()

    @property
    def size(self) -> int:
        """The number of assignments."""
        return math.prod(len(group.bits) for group in self.groups)

    def assignment(self, levels: Sequence[int]) -> Assignment:
        """The bit-width of every layer, in the workload's order, at one level per group."""
        assert len(levels) == len(self.groups), f"{len(levels)} levels for {len(self.groups)} groups"
        bits = {
            layer: group.bits[level] for group, level in zip(self.groups, levels, strict=True) for layer in group.layers
        }
        return Assignment.of({layer: bits[layer] for layer in self.layers})

    def layer_levels(self, points: ArrayLike) -> NDArray[np.uint8]:
        """(points, layers) the place in BIT_WIDTHS of what each layer takes: the levels of a CostTable.

        points: (points, groups) one level per group.
        """
        group_of, place = self._places
        taken: NDArray[np.uint8] = place[np.arange(len(self.groups)), np.asarray(points)][:, group_of]
        return taken

    @cached_property
    def _places(self) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """(layers,) the group of each layer, and (groups, levels) the place in BIT_WIDTHS."""
        group_of = {layer: i for i, group in enumerate(self.groups) for layer in group.layers}
        place = np.zeros((len(self.groups), len(BIT_WIDTHS)), dtype=np.uint8)
        for i, group in enumerate(self.groups):
            place[i, : len(group.bits)] = [BIT_WIDTHS.index(bits) for bits in group.bits]
        return np.array([group_of[layer] for layer in self.layers], dtype=np.intp), place

    def levels(self, assignment: Assignment) -> tuple[int, ...]:
        """The inverse of `assignment`; raises InputError when the assignment lies outside the space."""
        found = []
        for group in self.groups:
            chosen = sorted({str(assignment.get(layer, "nothing")) for layer in group.layers})
            known = {str(bits): level for level, bits in enumerate(group.bits)}
            if len(chosen) != 1 or chosen[0] not in known:
                raise InputError(
                    "assignment lies outside the search space",
                    where=f"group {group.name!r}",
                    got=" and ".join(chosen),
                    expected=f"one of {group.bits} for all of {', '.join(group.layers)}",
                )
            found.append(known[chosen[0]])
        return tuple(found)

    def uniform(self, bits: int) -> tuple[int, ...]:
        """The levels where every group takes `bits`, or the nearest allowed wider one, else its widest."""
        return tuple(group.level_of(bits) for group in self.groups)


def block_of(module: str) -> str:
    """The residual block or transformer layer that a module's path lies in, or the path itself.

    It ends at the first numbered component (`layer1.0.conv1` -> `layer1.0`, `features.4.block.1.0` -> `features.4`),
    or at a later one that follows directly or below `blocks` or `layers` (`stages.1.blocks.2.mlp` ->
    `stages.1.blocks.2`).
    """
    match = re.match(r"(?:[^./]+\.)*?\d+(?:\.(?:blocks\.|layers\.)?\d+)*(?=[./]|$)", module)
    return match.group() if match else module


def _whole(module: str) -> str:
    return "model"


def _itself(module: str) -> str:
    return module


GRANULARITIES: Mapping[str, Callable[[str], str]] = {"model": _whole, "block": block_of, "layer": _itself}
"""How much of the network one choice covers: module path -> the name of its unit."""


def build_space(
    workload: Workload,
    rules: Sequence[Rule] = (),
    groups: Sequence[Sequence[str]] = (),
    granularity: str = "layer",
    pins: Mapping[str, int] | None = None,
    *,
    ties: Sequence[tuple[str, ...]] = (),
) -> SearchSpace:
    """The search space of a workload.

    rules: last match wins; a layer that none matches may take all of 4, 8, 16, 32.
    groups: each a list of patterns whose layers share one choice; `{i}` stands for one path component, and ties only
    layers where it is the same (`encoder.layer.{i}.attention.self.query` with `...{i}.attention.self.key`).
    granularity: `model`, `block` or `layer`. pins: pattern -> the one bit-width that its layers take.
    ties: layer names that share a choice where rules and pins let them (`haq.grouping.natural_groups`): a layer with
    one bit-width leaves the tie, and layers without a common one are not tied; the space's `yielded` keeps such ties.
    Layers that share a weight and calls of one module always share a choice. Layers that are tied must agree: they may
    take what every one of them may take. Model and block merge only layers that may take the same, so a pinned layer
    leaves its block. Raises InputError when a pattern matches no layer or tied layers have nothing in common.
    """
    unit_of = lookup(GRANULARITIES, granularity, "granularity")
    pinned = tuple(Rule(pattern, (bits,)) for pattern, bits in (pins or {}).items())
    allowed = _allowed(workload, tuple(rules), pinned)
    merged: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    sets, yielded = _with_ties(_tied(workload, groups), ties, allowed)
    for tied in sets:
        bits = _common(tied, allowed)
        if not bits:
            raise InputError(
                "tied layers have no bit-width in common",
                got=", ".join(f"{layer.module}: {allowed[layer.module]}" for layer in tied),
                expected="rules and pins that agree on layers of one group, one module or one weight",
            )
        # What cannot be chosen is kept apart, layer by layer, so that it has its own name.
        unit = unit_of(tied[0].module) if len(bits) > 1 else tied[0].module
        merged.setdefault((unit, bits), []).extend(layer.name for layer in tied)
    order = {name: i for i, name in enumerate(workload.layer_names)}
    named: dict[str, Group] = {}
    for (unit, bits), layers in merged.items():
        name = unit if unit not in named else f"{unit}:{layers[0]}"
        named[name] = Group(name, tuple(sorted(layers, key=order.__getitem__)), bits)
    ordered = tuple(sorted(named.values(), key=lambda g: order[g.layers[0]]))
    return SearchSpace(workload.layer_names, ordered, yielded)


def no_such_layer(pattern: str, workload: Workload, where: str) -> InputError:
    """The error for a pattern that matches no layer, with the nearest names."""
    modules = list(dict.fromkeys(layer.module for layer in workload.layers))
    close = difflib.get_close_matches(pattern.replace("*", ""), modules, n=3, cutoff=0.4)
    inside = any(module.startswith(f"{pattern}.") for module in modules)
    return InputError(
        "pattern matches no layer",
        where=where,
        got=pattern,
        expected=f"a name or pattern of one of the {len(modules)} layers of {workload.name}",
        way_out=f"write {pattern + '.*'!r}" if inside else f"nearest: {', '.join(close or modules[:3])}",
    )


def _allowed(workload: Workload, rules: tuple[Rule, ...], pins: tuple[Rule, ...]) -> dict[str, tuple[int, ...]]:
    """Module -> the bit-widths that it may take."""
    modules = tuple(dict.fromkeys(layer.module for layer in workload.layers))
    allowed: dict[str, tuple[int, ...]] = dict.fromkeys(modules, BIT_WIDTHS)
    for kind, rule in [*(("rule", r) for r in rules), *(("pin", p) for p in pins)]:
        unknown = sorted(set(rule.bits) - set(BIT_WIDTHS))
        if unknown or not rule.bits:
            raise InputError(
                f"{kind} has bit-widths that cannot be searched",
                where=f"layers = {rule.layers!r}",
                got=list(rule.bits),
                expected=f"some of {list(BIT_WIDTHS)}",
            )
        matching = [module for module in modules if fnmatchcase(module, rule.layers)]
        if not matching:
            raise no_such_layer(rule.layers, workload, kind)
        allowed.update(dict.fromkeys(matching, tuple(sorted(set(rule.bits)))))
    return allowed


def _tied(workload: Workload, groups: Sequence[Sequence[str]]) -> list[list[LayerSpec]]:
    """The layers in sets that share one choice: calls of one module, one weight, or a group's patterns."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    keys = {layer.name: f"module {layer.module}" for layer in workload.layers}
    for layer in workload.layers:
        if layer.weight is not None:
            root[find(f"weight {layer.weight.key}")] = find(keys[layer.name])
    for number, patterns in enumerate(groups):
        for pattern in patterns:
            regex = _group_regex(pattern)
            matches = [(layer, m) for layer in workload.layers if (m := regex.fullmatch(layer.module))]
            if not matches:
                raise no_such_layer(pattern, workload, "group")
            for layer, match in matches:
                bound = "/".join(f"{k}={v}" for k, v in sorted(match.groupdict().items()))
                root[find(f"group {number} {bound}")] = find(keys[layer.name])
    sets: dict[str, list[LayerSpec]] = {}
    for layer in workload.layers:
        sets.setdefault(find(keys[layer.name]), []).append(layer)
    return list(sets.values())


def _with_ties(
    sets: list[list[LayerSpec]], ties: Sequence[tuple[str, ...]], allowed: Mapping[str, tuple[int, ...]]
) -> tuple[list[list[LayerSpec]], tuple[tuple[str, ...], ...]]:
    """The sets merged along the ties as far as rules and pins let them, and the ties that yield."""
    sets, yielded = [list(tied) for tied in sets], []
    set_of = {layer.name: place for place, tied in enumerate(sets) for layer in tied}
    for tie in ties:
        members = sorted({set_of[name] for name in tie})
        free = [place for place in members if len(_common(sets[place], allowed)) > 1]
        merged = [layer for place in free for layer in sets[place]]
        agree = bool(_common(merged, allowed))
        if free != members or not agree:
            yielded.append(tie)
        if free and agree:
            for place in free[1:]:
                sets[place] = []
            sets[free[0]] = merged
            set_of |= {layer.name: free[0] for layer in merged}
    return [tied for tied in sets if tied], tuple(yielded)


def _common(layers: Sequence[LayerSpec], allowed: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The bit-widths that every one of the layers may take."""
    return tuple(b for b in BIT_WIDTHS if all(b in allowed[layer.module] for layer in layers))


def _group_regex(pattern: str) -> re.Pattern[str]:
    """`*` is any text; `{i}` one path component, the same wherever it stands."""
    seen: set[str] = set()
    parts = []
    for part in re.split(r"(\*|\?|\{[A-Za-z_]\w*\})", pattern):
        if part.startswith("{") and part.endswith("}"):
            parts.append(f"(?P={part[1:-1]})" if part in seen else f"(?P<{part[1:-1]}>[^./]+)")
            seen.add(part)
        else:
            parts.append({"*": ".*", "?": "."}.get(part, re.escape(part)))
    return re.compile("".join(parts))
