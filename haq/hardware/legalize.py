"""Rewrites an assignment to what a device really executes, and says why wherever that differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from haq.candidate import Fallback
from haq.errors import InputError, nearest
from haq.hardware.schema import Executes, HardwareProfile
from haq.precision import BIT_WIDTHS, Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.workload import LayerSpec, Workload


@dataclass(frozen=True)
class Legalized:
    """What runs (a Precision for every layer of the workload, in its order) and every request that was not met."""

    executed: Assignment
    fallbacks: tuple[Fallback, ...]


def legalize(
    workload: Workload, assignment: Assignment, profile: HardwareProfile, scaling: Scaling = PLAIN
) -> Legalized:
    """What the device executes when asked for `assignment` (bit-widths, precisions or both).

    scaling: the scales that bit-widths ask for; a precision says its own. "Stored narrow, computed wide" is a row of
    the profile and no fallback, scales coarser than asked for are one. Raises InputError when a layer of the workload
    is not assigned or a name is no layer.
    """
    _check_names(workload, assignment)
    executed: dict[str, Precision] = {}
    fallbacks: list[Fallback] = []
    for layer in workload.layers:
        asked = meaning(profile, layer, assignment[layer.name], scaling)
        executed[layer.name], reason = execution(profile, layer, asked)
        if executed[layer.name] != asked:
            fallbacks.append(Fallback(layer.name, asked, executed[layer.name], reason))
    return Legalized(Assignment.of(executed), tuple(fallbacks))


def meaning(profile: HardwareProfile, layer: LayerSpec, choice: int | Precision, scaling: Scaling = PLAIN) -> Precision:
    """The precision that a bit-width asks for on this target, with these scales; a precision asks for itself."""
    if isinstance(choice, Precision):
        return choice
    for row in profile.means:
        if row.bits == choice and (not row.kinds or layer.kind in row.kinds):
            return scaling.asked(layer, Precision.parse(row.precision))
    raise InputError("not a bit-width", where=layer.name, got=choice, expected=f"one of {BIT_WIDTHS}")


def execution(profile: HardwareProfile, layer: LayerSpec, asked: Precision) -> tuple[Precision, str]:
    """The precision that runs, and the reason when it is not `asked`: the same codes with coarser scales, else the next
    wider one, else the widest there is; each with as fine scales as were asked for and can be had."""
    options = executable(profile, layer)
    if asked in options:
        return asked, ""
    codes = _codes(asked.plain, [option for option in options if option == option.plain] or options)
    group, per_token = asked.weight.group, asked.activation.per_token
    finest_first = (codes.scaled(g, per_token=t) for g, t in ((group, per_token), (group, False), (None, per_token)))
    chosen = next((option for option in finest_first if option in options), codes)
    if codes != asked.plain:
        return chosen, _said(profile, asked.plain) or f"{profile.name} has no {asked.plain} for {layer.kind}"
    return chosen, _said(profile, asked) or _coarser(profile, layer, asked, chosen)


def _codes(asked: Precision, options: Sequence[Precision]) -> Precision:
    """The first of the options, narrowest first, that is as wide as asked, or the last."""
    if asked in options:
        return asked
    wider = [option for option in options if _width(option) >= _width(asked)]
    # Of equally wide ones a float takes the place of a float, an integer that of an integer.
    same_family = [o for o in wider if o.activation.is_integer == asked.activation.is_integer]
    best = min(wider, key=_width) if wider else options[-1]
    return next((o for o in same_family if _width(o) == _width(best)), best)


def executable(profile: HardwareProfile, layer: LayerSpec) -> tuple[Precision, ...]:
    """Every precision that the device executes for this layer, narrowest first (weight bits, then activation bits)."""
    names = dict.fromkeys(name for row in profile.executes if _qualifies(row, layer) for name in row.precisions)
    return tuple(sorted(map(Precision.parse, names), key=_width))


def widest(profile: HardwareProfile, layer: LayerSpec) -> Precision:
    """The last rung of recovery: the widest precision that 32 bits can be executed in on this target."""
    return execution(profile, layer, meaning(profile, layer, 32))[0]


def arithmetic_of(profile: HardwareProfile, layer: LayerSpec, precision: Precision) -> str:
    """The row of [arithmetic] that multiplies when the layer runs in an executable precision."""
    for row in profile.executes:
        if str(precision) in row.precisions and _qualifies(row, layer):
            return row.arithmetic or str(precision.compute)
    raise InputError(
        f"{profile.name} does not execute this", where=layer.name, got=str(precision),
        expected=f"one of {', '.join(map(str, executable(profile, layer)))}", way_out="legalize the assignment first",
    )  # fmt: skip


def output_channels(layer: LayerSpec) -> int:
    """Output channels of a layer with a weight; columns of an attention product."""
    if layer.kind.startswith("conv"):
        return layer.output_shape[0]
    return layer.output_shape[-1]


def _qualifies(row: Executes, layer: LayerSpec) -> bool:
    return (
        (not row.kinds or layer.kind in row.kinds)
        and (not row.pointwise or not layer.kind.startswith("conv") or layer.is_pointwise)
        and output_channels(layer) >= row.min_outputs
        and output_channels(layer) % row.outputs_multiple_of == 0
        and (layer.weight is None or layer.weight.depth % row.inputs_multiple_of == 0)
    )


def _width(precision: Precision) -> tuple[int, int]:
    return precision.weight.bits, precision.activation.bits


def _said(profile: HardwareProfile, asked: Precision) -> str:
    """The reason that the profile itself gives, if it gives one."""
    for refusal in profile.refuses:
        if str(asked) in refusal.precisions:
            return refusal.reason
    for row in profile.executes:
        if str(asked) in row.precisions and row.otherwise:
            return row.otherwise
    return ""


def _coarser(profile: HardwareProfile, layer: LayerSpec, asked: Precision, runs: Precision) -> str:
    """Which of the scales that were asked for are shared more widely."""
    lost = []
    if runs.weight != asked.weight:
        lost.append(f"one scale per output channel and no groups of {asked.weight.group}")
    if runs.activation != asked.activation:
        lost.append("static scales and none per token")
    return f"for {layer.kind} {profile.name} has {'; '.join(lost)}"


def _check_names(workload: Workload, assignment: Assignment) -> None:
    known = frozenset(workload.layer_names)
    for name in assignment:
        if name not in known:
            raise InputError(
                "no such layer", where=workload.name, got=name, expected=f"a layer of {workload.name}",
                way_out=nearest(name, workload.layer_names),
            )  # fmt: skip
    for name in workload.layer_names:
        if name not in assignment:
            raise InputError("a layer has no precision", where=workload.name, got=name, expected="one for every layer")
