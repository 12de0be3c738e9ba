"""no-speedup: fewer bits cost time, so that a wider format would be both faster and more accurate.

Mechanism: every edge between layers of different activation formats pays for a change of format, which may also break
a fused addition or attention. At batch 1 the kernel's fixed cost, padding to the matrix unit, or a depthwise
convolution's traffic leave nothing for fewer bits to save, and finer weights may have to be unpacked before they are
multiplied. What the kernel saves is then less than what its edges cost.

Statistic: `latency_share`, the part of the modelled latency of the whole network, converts included, that goes when a
layer, or an island of neighbouring layers that work in the same activation format, takes a wider format: any that a
bit-width means there. One convert is paid per island edge, so that islands have to be widened as a whole.

Threshold: 1 % of the latency. Narrowing that saves no time still saves bytes and is no finding; below 1 % nobody would
widen for it. An island is reported in place of its layers where it saves at least 1 % more than they do alone.

Targets: TPU v3 and v4 work in bf16 throughout, so only fp32 layers among narrower ones make edges; storage is judged
by not-executed. A100: int4 Linear unpacks weights and is slower than int8 in large batches; int8 layers between fp16
ones convert. Mobile: quantize and dequantize are kernels of their own, and float inputs cost each kernel more.

Repair: widen the layer, merge islands, or narrow the neighbours so that the edge goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from haq.diagnose.costs import CostEvidence, Raised, time
from haq.diagnose.finding import Suspicion
from haq.hardware.cost import CostBreakdown
from haq.precision import Precision

MODE = "no-speedup"
REPAIR = "widen it, merge it with its neighbours' format, or narrow the neighbours so that no format changes"

LATENCY_SHARE = 0.01
SHOWN = 3
"""So many neighbours are named."""


@dataclass(frozen=True)
class _Unit:
    """Layers that are widened together, and the best way to do it. saved_ms: of the whole network; negative: costs."""

    layers: tuple[str, ...]
    raised: Raised
    saved_ms: float


def detect(costs: CostEvidence) -> Iterator[Suspicion]:
    """Layers and islands for which a wider format is faster, those first that save most."""
    least_ms = LATENCY_SHARE * costs.now.latency_ms
    found = islands(costs)
    units = _best(costs, [*((name,) for name in costs.workload.layer_names), *(i for i in found if len(i) > 1)])
    slow = {unit.layers[0]: unit for unit in units if len(unit.layers) == 1 and unit.saved_ms >= least_ms}
    for unit in (_pruned(costs, unit) for unit in units if unit.saved_ms >= least_ms):
        alone_ms = sum(slow[name].saved_ms for name in unit.layers if name in slow)
        if len(unit.layers) > 1 and unit.saved_ms >= alone_ms + least_ms:
            slow = {name: one for name, one in slow.items() if name not in unit.layers}
            slow[unit.layers[0]] = unit
    if not slow and (many := _together(costs, [unit for unit in units if unit.saved_ms > 0])) is not None:
        slow = {many.layers[0]: many} if many.saved_ms >= least_ms else {}
    for unit in sorted(slow.values(), key=lambda unit: -unit.saved_ms):
        yield _suspicion(costs, unit)


def islands(costs: CostEvidence) -> tuple[tuple[str, ...], ...]:
    """The largest sets of layers that hand each other tensors and work in the same activation format, in order."""
    names = costs.workload.layer_names
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in _edges(costs):
        if _works_in(costs, names[a]) == _works_in(costs, names[b]):
            first, second = sorted((root(a), root(b)))
            parent[second] = first
    members: dict[int, list[str]] = {}
    for i, name in enumerate(names):
        members.setdefault(root(i), []).append(name)
    return tuple(map(tuple, members.values()))


def _edges(costs: CostEvidence) -> list[tuple[int, int]]:
    """Pairs of layers, by their indices, between whose kernels a tensor passes; glue that follows a layer is its."""
    glue = len(costs.table.layers)
    return [(int(a), int(b)) for a, b in costs.table.entries.ends if a != glue and b != glue]


def _works_in(costs: CostEvidence, layer: str) -> str:
    return str(costs.executed.precision(layer).activation)


def _best(costs: CostEvidence, groups: Sequence[tuple[str, ...]]) -> list[_Unit]:
    """Each group with the way of widening it that saves most; groups that cannot be widened are left out."""
    ways = [(group, raised) for group in groups for raised in _ways(costs, group)]
    best: dict[tuple[str, ...], _Unit] = {}
    for (group, raised), saved_ms in zip(ways, costs.saved_ms([raised for _, raised in ways]), strict=True):
        if group not in best or saved_ms > best[group].saved_ms:
            best[group] = _Unit(group, raised, float(saved_ms))
    return list(best.values())


def _ways(costs: CostEvidence, group: tuple[str, ...]) -> list[Raised]:
    """Each layer's next wider format, each one's widest, and each activation format that some can take; each once."""
    options = {name: wider for name in group if (wider := _options(costs, name))}
    formats = dict.fromkeys(p.activation for wider in options.values() for p in wider)
    ways = [{name: wider[which] for name, wider in options.items()} for which in (0, -1)]
    ways += [
        {name: same[0] for name, wider in options.items() if (same := [p for p in wider if p.activation == format])}
        for format in formats
    ]
    return [raised for i, raised in enumerate(ways) if raised and raised not in ways[:i]]


def _options(costs: CostEvidence, layer: str) -> tuple[Precision, ...]:
    """What is wider and not only stored wider: storage alone never promised time, and not-executed judges it."""
    now = costs.executed.precision(layer)
    return tuple(p for p in costs.wider(layer) if not (now.is_storage_only and p.activation == now.activation))


def _together(costs: CostEvidence, units: Sequence[_Unit]) -> _Unit | None:
    """Units of which none is worth a word, as one: those that save most first, each layer once."""
    raised: dict[str, Precision] = {}
    for unit in sorted(units, key=lambda unit: -unit.saved_ms):
        if not raised.keys() & set(unit.layers):
            raised |= unit.raised
    if not raised:
        return None
    return _pruned(costs, _Unit(tuple(raised), raised, float(costs.saved_ms([raised])[0])))


def _pruned(costs: CostEvidence, unit: _Unit) -> _Unit:
    """The unit without layers that may as well stay as they are, where that costs no time."""
    without = [{n: p for n, p in unit.raised.items() if n != name} for name in unit.raised]
    lost_ms = unit.saved_ms - costs.saved_ms(without)
    kept = {name: unit.raised[name] for name, lost in zip(unit.raised, lost_ms, strict=True) if lost > 0}
    if not kept or len(kept) == len(unit.raised):
        return unit
    saved_ms = float(costs.saved_ms([kept])[0])
    return _Unit(tuple(kept), kept, saved_ms) if saved_ms >= unit.saved_ms else unit


def _suspicion(costs: CostEvidence, unit: _Unit) -> Suspicion:
    total_ms, first = costs.now.latency_ms, unit.layers[0]
    share = unit.saved_ms / total_ms
    now, wide = _named(map(costs.executed.precision, unit.raised)), _named(unit.raised.values())
    others = len(unit.layers) - 1
    more = f" and {others} more layer{'s' if others > 1 else ''} around it" if others else ""
    text = (
        f"{first}{more} in {now}: the network takes {time(unit.saved_ms)} ({100 * share:.1f} %) more than with {wide} "
        f"there, since {_reason(costs, unit)}{_narrowed(costs, unit)}"
    )
    return Suspicion(
        MODE, first, "latency_share", share, LATENCY_SHARE, share, text,
        effect=costs.effect(unit.saved_ms, costs.saved_bytes(unit.raised)), layers=unit.layers,
    )  # fmt: skip


def _named(precisions: Iterable[Precision]) -> str:
    return " and ".join(dict.fromkeys(map(str, precisions)))


def _reason(costs: CostEvidence, unit: _Unit) -> str:
    """Where the time goes: changes of format that go with it, and what the kernels themselves save."""
    before, after = costs.now, costs.breakdown(unit.raised)
    edges_ms = _converts_ms(before) - _converts_ms(after)
    kernels_ms = unit.saved_ms - edges_ms
    broken = {c.breaks for c in before.converts if c.breaks} if _broken_ms(before) > _broken_ms(after) else set()
    parts = []
    if edges_ms > 0:
        fused = f", a fused {' and '.join(sorted(broken))} broken among them" if broken else ""
        parts.append(f"its changes of format take {time(edges_ms)}{fused}")
    if kernels_ms > 0:
        parts.append(f"its kernels take {time(kernels_ms)} more ({_bound(before, unit)})")
    else:
        parts.append(f"its kernels save only {time(kernels_ms)} ({_bound(before, unit)})")
    return " and ".join(parts)


def _converts_ms(cost: CostBreakdown) -> float:
    return sum(c.latency_ms for c in cost.converts) + sum(kernel.convert_ms for kernel in cost.kernels)


def _broken_ms(cost: CostBreakdown) -> float:
    return sum(c.latency_ms for c in cost.converts if c.breaks)


def _bound(cost: CostBreakdown, unit: _Unit) -> str:
    """What the largest of the unit's kernels spends most of its time on."""
    longest = max((c for c in cost.layers if c.layer in unit.layers), key=lambda c: c.latency_ms)
    words = {
        "overhead": "bound by the fixed cost of a kernel", "memory": "bound by traffic",
        "compute": "bound by arithmetic", "convert": "bound by bringing inputs into its format",
    }  # fmt: skip
    return words[longest.bound]


def _narrowed(costs: CostEvidence, unit: _Unit) -> str:
    """What narrowing the neighbours would save instead, where that saves anything; empty otherwise."""
    names, own = costs.table.layers, set(unit.layers)
    pairs = [(names[a], names[b]) for a, b in _edges(costs)]
    near = {end for pair in pairs for end in pair if own & set(pair)} - own
    formats = {costs.executed.precision(name).activation for name in own}
    raised = {}
    for name in sorted(near, key=names.index):
        levels, now = costs.table.entries.executed[names.index(name)], costs.executed.precision(name)
        same = [p for p in levels if p.activation in formats and p.activation.bits < now.activation.bits]
        if same:
            raised[name] = same[-1]
    saved_ms = float(costs.saved_ms([raised])[0]) if raised else 0.0
    if saved_ms <= 0:
        return ""
    shown = ", ".join(list(raised)[:SHOWN]) + (f" and {len(raised) - SHOWN} more" if len(raised) > SHOWN else "")
    return f"; narrowing {shown} as well would save {time(saved_ms)} instead"
