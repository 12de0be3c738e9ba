"""Why fewer bits do not help a layer: one sentence per cause, each derived from the cost model's own terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from haq.hardware.legalize import arithmetic_of
from haq.hardware.roofline import compute_seconds, memory_seconds, rate, seconds
from haq.hardware.work import Tiling, op_class, tiling, weight_traffic
from haq.placing import Case, Placed
from haq.precision import Precision

WASTE = 0.1
"""Padding and idle units are worth a sentence from this share of the work on ..."""
LOSS = 0.02
"""... where they also cost this share of the layer's time."""


@dataclass(frozen=True)
class Reason:
    """One cause. detail: its numbered places `{0}` stand for `times_ms`.

    part_ms: how much of the layer's time it is about, by which causes are ordered. kind: what layers share whose heads
    differ in numbers only; absent, the head is what they share.
    """

    head: str
    detail: str
    part_ms: float
    times_ms: tuple[float, ...] = ()
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.head}: {filled(self.detail, self.times_ms)}"


def filled(detail: str, times_ms: Sequence[float]) -> str:
    """The detail with its times, all in the unit that the longest takes: `3.0 of 3.6 us`."""
    if not times_ms:
        return detail
    unit, factor = ("us", 1e3) if max(times_ms) < 1 else ("ms", 1.0)
    return detail.format(*(_number(time * factor) for time in times_ms), unit=unit)


def reasons_of(case: Case) -> tuple[Reason, ...]:
    """Every reason that holds for the layer, the one about most of its time first."""
    found = [reason for derive in REASONS for reason in derive(case)]
    return tuple(sorted(found, key=lambda reason: -reason.part_ms))


def falls_back(case: Case) -> list[Reason]:
    """Bit-widths that run as something wider, or mean the same as a wider one."""
    alike: dict[tuple[Precision, str], list[int]] = {}
    for width, wider in zip(case.widths, (*case.widths[1:], None), strict=True):
        if width not in case.up_to_now:
            continue
        if width.executed != width.asked:
            alike.setdefault((width.executed, width.reason), []).append(width.bits)
        elif wider is not None and wider.asked == width.asked:
            alike.setdefault((width.executed, f"what {wider.bits} bits mean too"), []).append(width.bits)
    cost = case.now.kernel
    shrinkable_ms = cost.latency_ms - cost.overhead_ms - cost.convert_ms
    return [Reason(f"{_bits(bits)} run as {run}", why, shrinkable_ms) for (run, why), bits in alike.items()]


def stored_only(case: Case) -> list[Reason]:
    """Bit-widths whose weight is narrower than another's but multiplied in the same row of arithmetic, or no faster."""
    if case.layer.weight is None or case.layer.gemm is None:
        return []
    profile, found = case.setting.profile, []
    same: dict[str, list[int]] = {}
    for width in case.up_to_now:
        wider = [w for w in case.widths if w.executed.weight.bits > width.executed.weight.bits]
        if not wider or width.executed != width.asked:
            continue
        row = arithmetic_of(profile, case.layer, width.executed)
        if any(arithmetic_of(profile, case.layer, w.executed) == row for w in wider):
            same.setdefault(row, []).append(width.bits)
        elif _speed(case, width.executed) <= _speed(case, wider[0].executed):
            text = f"{width.executed} is multiplied no faster than {wider[0].executed}"
            found.append(Reason(f"{width.bits} bits save traffic only", text, _multiply_ms(case)))
    for row, bits in same.items():
        text = f"{_bits(bits)} are multiplied as {row}"
        found.append(Reason(f"storage only on {profile.name}", text, _multiply_ms(case)))
    return found


def overhead_bound(case: Case) -> list[Reason]:
    """The fixed cost of a kernel is the longest part of it."""
    cost = case.now.kernel
    if cost.bound != "overhead":
        return []
    extra = ", floats as the network's input included" if case.work.float_inputs else ""
    head = f"overhead-bound at batch {case.setting.batch}"
    detail = f"{{0}} of {{1}} {{unit}} are the fixed cost of a kernel{extra}"
    return [Reason(head, detail, cost.overhead_ms, (cost.overhead_ms, cost.latency_ms))]


def memory_bound(case: Case) -> list[Reason]:
    """Traffic is the longest part, so bits save time only as they save bytes; fp32 scores never shrink."""
    cost, work = case.now.kernel, case.work
    if cost.bound != "memory":
        return []
    times = (cost.memory_ms, cost.latency_ms)
    scores_ms = case.to_ms * memory_seconds(replace(work, dram_bytes=0.0, on_chip_bytes=0.0), case.setting.profile)
    if scores_ms > cost.memory_ms / 2:
        detail = "{0} of {1} {unit} are spent on fp32 scores, whatever the operands"
        return [Reason("scores of the fused attention", detail, scores_ms, (scores_ms, cost.latency_ms))]
    weights = sum(weight_traffic(case.layer, cost.precision, case.setting))
    own = cost.precision.activation
    if weights > (work.dram_bytes + work.on_chip_bytes) / 2:
        most = "weights: fewer bits save only the bytes they save"
    elif all(width.executed.activation == own for width in case.up_to_now):
        most = f"activations, which stay {own}"
    else:
        most = "activations: fewer bits save only the bytes they save"
    return [Reason("memory-bound", f"{{0}} of {{1}} {{unit}} are traffic, most of it {most}", cost.memory_ms, times)]


def vector_bound(case: Case) -> list[Reason]:
    """Finishing results in the vector unit, which knows no bit-widths, takes longer than multiplying."""
    cost = case.now.kernel
    finish_ms = case.to_ms * compute_seconds(replace(case.work, operations=0.0), case.setting.profile)
    if cost.bound != "compute" or finish_ms <= cost.compute_ms / 2:
        return []
    detail = "{0} of {1} {unit} finish results, which no bit-width shortens"
    return [Reason("bound by the vector unit", detail, finish_ms, (finish_ms, cost.latency_ms))]


def convert_bound(case: Case) -> list[Reason]:
    """Changes of format that the kernel needs whatever its neighbours run are the longest part."""
    cost = case.now.kernel
    if cost.bound != "convert":
        return []
    detail = "{0} of {1} {unit} bring inputs into its format, whatever its neighbours run"
    return [Reason("convert-bound", detail, cost.convert_ms, (cost.convert_ms, cost.latency_ms))]


def padded(case: Case) -> list[Reason]:
    """Sides of the product that do not fill the blocks of the matrix unit."""
    cut = _tiling(case)
    if cut is None:
        return []
    tile = case.setting.profile.tile
    sides = [("rows", *cut.rows), ("columns", *cut.columns), ("depth", *cut.depth)]
    useful = 1.0
    for _, size, whole in sides:
        useful *= size / whole
    lost_ms = _lost_ms(case, useful)
    if 1 - useful <= WASTE or lost_ms < LOSS * case.now.kernel.latency_ms:
        return []
    # A side that wastes little by itself is not named unless no other does.
    named = [side for side in sides if 1 - side[1] / side[2] > WASTE] or [min(sides, key=lambda s: s[1] / s[2])]
    shown = " and ".join(f"{size} -> {whole:g} {name}" for name, size, whole in named)
    head = f"padded {shown}, {_percent(1 - useful)} of the work wasted"
    kind = f"padded {' and '.join(name for name, _, _ in named)}"
    at_a_time = {"rows": tile.m, "columns": tile.n, "depth": tile.k}
    unit = " and ".join(f"{at_a_time[name].si:g} {name}" for name, _, _ in named)
    detail = f"the matrix unit takes {unit} at a time; {{0}} of {{1}} {{unit}} are lost"
    return [Reason(head, detail, lost_ms, (lost_ms, case.now.kernel.latency_ms), kind)]


def idle_units(case: Case) -> list[Reason]:
    """Blocks that do not fill the last wave of the units."""
    cut, units = _tiling(case), case.setting.profile.tile.units
    if cut is None or units is None:
        return []
    busy = cut.blocks / cut.slots
    lost_ms = _lost_ms(case, busy)
    if 1 - busy <= WASTE or lost_ms < LOSS * case.now.kernel.latency_ms:
        return []
    waves = round(cut.slots / units.si)
    turns = "" if waves == 1 else f" in {waves} turns"
    head = f"{_count(cut.blocks, 'block')} on {units.si:g} units{turns}, {_percent(1 - busy)} idle"
    kind = f"blocks that do not fill {units.si:g} units"
    return [Reason(head, "{0} of {1} {unit} are lost", lost_ms, (lost_ms, case.now.kernel.latency_ms), kind)]


def converting_costs_more(case: Case) -> list[Reason]:
    """The layer would be faster at a wider bit-width, where it needs fewer changes of format."""
    wider = [width for width in case.widths if width not in case.up_to_now]
    best = min(wider, key=lambda width: width.placed.latency_ms, default=None)
    if best is None or best.placed.latency_ms >= case.now.latency_ms:
        return []
    extra_ms, saved_ms = _trade(case.now, best.placed)
    if extra_ms <= 0:
        return []
    costs = f"{_partners(case.now)} costs {{0}} {{unit}}"
    if saved_ms <= 0:
        text = f"{costs}, and the layer itself is no faster than at {best.bits} bits"
        return [Reason("converting for nothing", text, extra_ms, (extra_ms,))]
    text = f"{costs}, more than the {{1}} {{unit}} saved over {best.bits} bits"
    return [Reason("converting eats the gain", text, extra_ms, (extra_ms, saved_ms))]


def narrowing_alone_does_not_pay(case: Case) -> list[Reason]:
    """The best narrower bit-width saves less in the kernel than the changes of format that it brings."""
    narrower = [width for width in case.up_to_now if width.executed != case.now.precision]
    best = min(reversed(narrower), key=lambda width: width.placed.latency_ms, default=None)
    if best is None or best.placed.latency_ms < case.now.latency_ms:
        return []
    extra_ms, saved_ms = _trade(best.placed, case.now)
    if extra_ms <= 0 or saved_ms <= 0:
        return []
    broken = dict.fromkeys(convert.breaks for convert in best.placed.converts if convert.breaks)
    breaks = "".join(f" and breaking the fused {what}" for what in broken)
    text = f"converting {_partners(best.placed)}{breaks} costs {{0}} {{unit}}, more than the {{1}} {{unit}} saved"
    return [Reason(f"{best.bits} bits do not pay in one layer alone", text, saved_ms, (extra_ms, saved_ms))]


def breaks_a_fusion(case: Case) -> list[Reason]:
    """The layer takes an operand in another format, so that what would be one kernel runs as two."""
    own, found = case.now.precision.activation, []
    for what in dict.fromkeys(convert.breaks for convert in case.now.converts if convert.breaks):
        broken = [c for c in case.now.converts if c.breaks == what and c.to_format == own]
        if broken:
            cost_ms = sum(convert.latency_ms for convert in broken)
            detail = f"its operand comes in {broken[0].from_format}, not {own}, which costs {{0}} {{unit}}"
            found.append(Reason(f"breaks the fused {what}", detail, cost_ms, (cost_ms,)))
    return found


def _tiling(case: Case) -> Tiling | None:
    """How the layer is cut into blocks, if it is."""
    gemm = case.layer.gemm
    return None if gemm is None or case.layer.is_depthwise else tiling(case.layer, gemm, case.setting)


def _lost_ms(case: Case, useful: float) -> float:
    """What the kernel would save if only this share of its operations were left."""
    work, profile = case.work, case.setting.profile
    saved_s = seconds(work, profile) - seconds(replace(work, operations=useful * work.operations), profile)
    return case.to_ms * saved_s


def _multiply_ms(case: Case) -> float:
    return case.to_ms * compute_seconds(replace(case.work, finished=0.0), case.setting.profile)


def _speed(case: Case, precision: Precision) -> float:
    """Operations per second that the layer's class of kernel reaches."""
    profile = case.setting.profile
    row = arithmetic_of(profile, case.layer, precision)
    return rate(profile.arithmetic[row]) * profile.share_of_peak(op_class(case.layer), row)


def _trade(narrow: Placed, wide: Placed) -> tuple[float, float]:
    """What the narrower precision costs more in changes of format and what it saves in the kernel, in ms."""
    return narrow.converts_ms - wide.converts_ms, wide.kernel.latency_ms - narrow.kernel.latency_ms


def _partners(placed: Placed) -> str:
    """The formats of neighbours that differ: `from fp16 and to int8`."""
    own = placed.precision.activation
    before = dict.fromkeys(str(c.from_format) for c in placed.converts if c.to_format == own)
    after = dict.fromkeys(str(c.to_format) for c in placed.converts if c.to_format != own)
    ways = [f"{way} {' and '.join(formats)}" for way, formats in (("from", before), ("to", after)) if formats]
    return "from and to " + " and ".join(before) if before and before == after else " and ".join(ways)


def _bits(bits: Sequence[int]) -> str:
    """`4 and 8 bits`."""
    return f"{' and '.join(map(str, bits))} bits"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share < 0.995 else "over 99 %"


def _number(value: float) -> str:
    """Two digits or what stands before the point: 0.012, 0.35, 3.0, 12.5, 160."""
    return f"{value:.2g}" if value < 0.95 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


REASONS: tuple[Callable[[Case], list[Reason]], ...] = (
    falls_back,
    stored_only,
    overhead_bound,
    memory_bound,
    vector_bound,
    convert_bound,
    padded,
    idle_units,
    converting_costs_more,
    narrowing_alone_does_not_pay,
    breaks_a_fusion,
)
