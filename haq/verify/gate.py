"""The gate: what a written artifact measured, line by line against limits, with a verdict; plain numbers in and out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from haq.accuracy import Interval, paired_drop_interval
from haq.precision import Precision
from haq.verify.evidence import SAME_SCALE, Answers, Evidence, Latency

SHOWN = 8
"""So many layers are named in a line; JSON has them all."""


@dataclass(frozen=True)
class Limits:
    """What an artifact must keep. accuracy_gap_points: either way, against the simulation. size_gap: relative.

    latency_ms: None, and latency is shown only: a model of another device says nothing about this machine.
    """

    accuracy_gap_points: float = 0.3
    agreement: float = 0.99
    size_gap: float = 0.03
    latency_ms: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table. passed: None where nothing is judged. faults: one sentence each."""

    check: str
    measured: str
    against: str
    limit: str
    passed: bool | None
    values: Mapping[str, Any]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The table and its verdict: a gate passes when none of its lines fails. notes: how it was measured."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(line.passed is not False for line in self.lines)

    @property
    def faults(self) -> tuple[str, ...]:
        """What failed, in one sentence each."""
        return tuple(fault for line in self.lines if line.passed is False for fault in line.faults)

    def to_json(self) -> dict[str, Any]:
        lines = [{**asdict(line), "values": _finite(line.values)} for line in self.lines]
        return {"passed": self.passed, "faults": list(self.faults), "lines": lines, "notes": list(self.notes)}


def judge(found: Evidence, limits: Limits) -> Gate:
    """The verdict on an artifact."""
    lines = (
        _file_size(found),
        _initializers(found, limits),
        *_answers(found.answers, limits),
        *(() if found.latency is None else (_latency(found.latency, limits),)),
        _precision(found),
        *_scales(found),
        *_codes(found),
        *_wider(found),
    )
    return Gate(lines, found.notes)


def failed(sentence: str) -> Gate:
    """The gate of an artifact that cannot even be opened."""
    return Gate((Line("opens", "no", "", "opens in its runtime", False, {}, (sentence,)),))


def _file_size(found: Evidence) -> Line:
    return Line("file size", _mb(found.file_bytes), "", "", None, {"file_bytes": found.file_bytes})


def _initializers(found: Evidence, limits: Limits) -> Line:
    values: dict[str, Any] = {"initializer_bytes": found.initializer_bytes}
    if found.promised_bytes is None:
        return Line("stored numbers", _mb(found.initializer_bytes), "not promised", "", None, values)
    gap = found.initializer_bytes / found.promised_bytes - 1
    values |= {"promised_bytes": found.promised_bytes, "gap": gap}
    fault = (
        f"size: the stored numbers take {_mb(found.initializer_bytes)}, the config promises "
        f"{_mb(found.promised_bytes)} ({100 * gap:+.1f} %, limit {100 * limits.size_gap:g} %)"
    )
    passed = abs(gap) <= limits.size_gap
    against = f"{_mb(found.promised_bytes)} promised, {100 * gap:+.2f} %"
    limit = f"within {100 * limits.size_gap:g} %"
    return Line("stored numbers", _mb(found.initializer_bytes), against, limit, passed, values, _if_not(passed, fault))


def _answers(answers: Answers, limits: Limits) -> tuple[Line, ...]:
    shown = answers.metric.shown
    artifact, simulated = float(np.mean(answers.artifact)), float(np.mean(answers.simulated))
    better = 1 if answers.metric.direction == "maximize" else -1
    gap = 100 * better * (simulated - artifact)
    values: dict[str, Any] = {
        "split": answers.split, "samples": np.size(answers.artifact), "accuracy": artifact, "simulated": simulated,
        "gap_points": gap,
    }  # fmt: skip
    text = f"{shown(simulated)} simulated, {gap:+.2f} points below"
    if (interval := _interval(answers)) is not None:
        values["gap_interval"] = asdict(interval)
        text += f" ({interval.low:+.2f} to {interval.high:+.2f})"
    limit = limits.accuracy_gap_points
    # A NaN passes no comparison, and so fails.
    passed = abs(gap) <= limit + 1e-9
    fault = (
        f"{answers.metric.noun}: {shown(artifact)} on {answers.split}, the simulation has {shown(simulated)} "
        f"({abs(gap):.2f} points apart, limit {limit:g})"
    )
    lines = [
        Line(answers.metric.noun, shown(artifact), text, f"within {limit:g} points", passed, values,
             _if_not(passed, fault))
    ]  # fmt: skip
    if answers.agreement is not None:
        passed = answers.agreement >= limits.agreement
        measured, least = f"{100 * answers.agreement:.2f} %", f"{100 * limits.agreement:g} %"
        fault = f"agreement: only {measured} of the answers are the simulation's, limit {least}"
        values = {"agreement": answers.agreement}
        lines.append(
            Line("agreement", measured, "the simulation's answers", f"at least {least}", passed, values,
                 _if_not(passed, fault))
        )  # fmt: skip
    if answers.largest_error is not None and answers.largest_output is not None:
        values = {"largest_error": answers.largest_error, "largest_output": answers.largest_output}
        against = f"outputs up to {answers.largest_output:.3g}"
        lines.append(Line("largest output error", f"{answers.largest_error:.3g}", against, "", None, values))
    return tuple(lines)


def _interval(answers: Answers) -> Interval | None:
    """Of the gap in points, paired; positive is worse than simulated. None without scores per sample."""
    one, other = answers.simulated, answers.artifact
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)) or not np.isfinite(one - other).all():
        return None
    is_continuous = not answers.metric.is_fraction
    if answers.metric.direction == "minimize":
        one, other = other, one
    return paired_drop_interval(one, other, is_continuous=is_continuous)


def _latency(latency: Latency, limits: Limits) -> Line:
    median, times = latency.median_ms, latency.times_ms
    values: dict[str, Any] = {
        "latency_ms": median, "least_ms": min(times), "largest_ms": max(times), "repeats": len(times),
        "batch": latency.batch, "how": latency.how,
    }  # fmt: skip
    against = "not modelled"
    if latency.modelled_ms is not None:
        against = f"{latency.modelled_ms:.4g} ms modelled on {latency.target}"
        values |= {"modelled_ms": latency.modelled_ms, "target": latency.target}
    if limits.latency_ms is None:
        return Line("latency", f"{median:.4g} ms", against, "", None, values)
    passed = median <= limits.latency_ms
    fault = f"latency: {median:.4g} ms (median of {len(times)}), limit {limits.latency_ms:g} ms"
    limit = f"at most {limits.latency_ms:g} ms"
    return Line("latency", f"{median:.4g} ms", against, limit, passed, values, _if_not(passed, fault))


def _precision(found: Evidence) -> Line:
    """Whether each layer is stored and fed as the config says."""
    faults, unknown = [], []
    for layer in found.asked:
        asked, realised = found.asked.precision(layer), found.realised.get(layer)
        if realised is None:
            unknown.append(layer)
        elif realised != asked:
            faults.append(f"layer {layer} runs in {_short(realised)}, config says {asked}")
        elif asked.compute.name == "fp32" and found.arithmetic.get(layer, "fp32") != "fp32":
            faults.append(f"layer {layer} runs in {found.arithmetic[layer]}, config says {asked}")
    if unknown:
        faults.append(f"no such layer in the artifact, or none that tells its precision: {named(unknown)}")
    right = len(found.asked) - len(unknown) - sum(fault.startswith("layer ") for fault in faults)
    values = {"realised": {name: str(p) for name, p in found.realised.items() if p is not None}, "unknown": unknown}
    measured, against = f"{right} of {len(found.asked)} layers as asked", "read back from the artifact"
    return Line("realised precision", measured, against, "every layer", not faults, values, tuple(faults))


def _scales(found: Evidence) -> tuple[Line, ...]:
    """Whether the numbers that the artifact multiplies codes with are the config's."""
    if not found.scales:
        return ()
    faults = []
    for (layer, which), (asked, got) in found.scales.items():
        what = f"layer {layer}: scale" if which == "weight" else f"layer {layer}: scale of {which}"
        if asked.size != got.size:
            faults.append(f"{what} is {got.size} numbers, the config's {asked.size}")
            continue
        ratios = got.reshape(-1) / asked.reshape(-1)
        worst = float(ratios[np.abs(np.log(np.maximum(ratios, 1e-30))).argmax()])
        if not abs(worst - 1) <= SAME_SCALE:
            faults.append(f"{what} differs from the config's by {worst:.4g}x")
    values = {"compared": len(found.scales)}
    measured = f"{len(found.scales) - len(faults)} of {len(found.scales)} as in the config"
    return (Line("scales", measured, "read back from the artifact", "all", not faults, values, tuple(faults)),)


def _codes(found: Evidence) -> tuple[Line, ...]:
    """Whether the integers that the artifact stores are the config's."""
    if not found.other_codes:
        return ()
    faults = tuple(
        f"layer {layer}: codes differ from the config's in {other} of {channels} channels"
        for layer, (other, channels) in found.other_codes.items()
        if other
    )
    compared = len(found.other_codes)
    measured = f"{compared - len(faults)} of {compared} layers as in the config"
    return (Line("codes", measured, "read back from the artifact", "all", not faults, {"compared": compared}, faults),)


def _wider(found: Evidence) -> tuple[Line, ...]:
    """Which layers the runtime multiplies in a wider format than was asked: same answers, other times."""
    wider = {
        layer: arithmetic
        for layer, arithmetic in found.arithmetic.items()
        if layer in found.asked and arithmetic != found.asked.precision(layer).compute.name
    }
    if not found.arithmetic:
        return ()
    values = {"arithmetic": dict(found.arithmetic), "wider": wider}
    kinds = {(str(found.asked.precision(layer)), arithmetic) for layer, arithmetic in wider.items()}
    against = "; ".join(
        f"{asked} in {arithmetic}: {named(n for n, a in wider.items() if (str(found.asked.precision(n)), a) == kind)}"
        for kind in sorted(kinds)
        for asked, arithmetic in (kind,)
    )
    measured = f"{len(wider)} of {len(found.arithmetic)} layers"
    return (Line("runs wider here", measured, against or "every layer in its own arithmetic", "", None, values),)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is no number: JSON has none for it, and the line's text says so."""
    return {key: value for key, value in values.items() if not isinstance(value, float) or np.isfinite(value)}


def _short(precision: Precision) -> str:
    return str(precision.weight) if precision.weight == precision.activation else str(precision)


def named(layers: Iterable[str]) -> str:
    """A list of layers, the first SHOWN by name."""
    every = list(layers)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def _if_not(passed: bool, fault: str) -> tuple[str, ...]:
    return () if passed else (fault,)


def _mb(size: float) -> str:
    return f"{size / 1e6:.3f} MB"
