"""A diagnosis as plain JSON data: what is unknown is absent, and what is no finite number is said in words only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from haq.accuracy import Interval
from haq.diagnose.finding import Change, Diagnosis, Effect, Finding, Suspicion


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """`haq diagnose --json`. The findings come first that regain most; `suspected` are those without an effect.

    explained_share: the part of the loss that all findings together explain; absent where nothing was lost.
    """
    share = explained_share(diagnosis)
    return _known({
        "lost": effect_json(diagnosis.lost),
        "explained": effect_json(diagnosis.explained),
        "explained_share": share,
        "unexplained_share": None if share is None else 1 - share,
        "findings": [finding_json(finding) for finding in ranked(diagnosis.findings)],
        "suspected": [suspicion_json(suspicion) for suspicion in diagnosis.suspected],
        "shares": dict(diagnosis.shares),
        "sample_forwards": diagnosis.forwards,
        "seconds": diagnosis.seconds,
    })  # fmt: skip


def explained_share(diagnosis: Diagnosis) -> float | None:
    """The part of the loss that all findings explain together, in nats where both are known, else in points.

    Neither below 0 nor above 1: undoing causes may do better than FP32 by luck. None where nothing was lost.
    """
    lost, explained = diagnosis.lost, diagnosis.explained
    for whole, part in ((lost.nats, explained.nats), (lost.points, explained.points)):
        if whole is not None and part is not None:
            return min(max(part / whole, 0.0), 1.0) if whole > 0 and math.isfinite(whole) else None
    return None


def ranked(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """By effect: those of accuracy first, by nats or else points, then those of cost by time, then by bytes."""
    return tuple(sorted(findings, key=lambda finding: _rank(finding.effect)))


def _rank(effect: Effect) -> tuple[int, float, float]:
    if effect.nats is not None or effect.points is not None:
        return 0, -(effect.nats or 0.0), -(effect.points or 0.0)
    return 1, -(effect.latency_ms or 0.0), -float(effect.size_bytes or 0)


def finding_json(finding: Finding) -> dict[str, Any]:
    """A suspicion's keys, with the effect that proves it and the repair."""
    return {**suspicion_json(finding.suspicion), "effect": effect_json(finding.effect), "repair": finding.repair}


def suspicion_json(suspicion: Suspicion) -> dict[str, Any]:
    """layer: absent for the whole network; layers: absent for one. change: what undoes the cause, where that is tried.

    An infinite severity, of numbers that are none, is absent; the text says what it is.
    """
    return _known({
        "mode": suspicion.mode,
        "layer": suspicion.layer or None,
        "layers": list(suspicion.layers) or None,
        "index": suspicion.index,
        "statistic": suspicion.statistic,
        "value": suspicion.value,
        "threshold": suspicion.threshold,
        "severity": suspicion.severity,
        "text": suspicion.text,
        "change": None if suspicion.change is None else change_json(suspicion.change),
    })  # fmt: skip


def change_json(change: Change) -> dict[str, Any]:
    """repairs: kind, and layer and operand where it is of one; raised: layer -> precision."""
    repairs = [_known({"kind": r.kind, "layer": r.layer or None, "index": r.index}) for r in change.repairs]
    return {"repairs": repairs, "raised": {layer: str(precision) for layer, precision in change.raised}}


def effect_json(effect: Effect) -> dict[str, Any]:
    """Each figure that is known, with its 95 % interval; positive is better."""
    return _known({
        "points": effect.points,
        "points_interval": _interval(effect.points_interval),
        "nats": effect.nats,
        "nats_interval": _interval(effect.nats_interval),
        "latency_ms": effect.latency_ms,
        "latency_interval": _interval(effect.latency_interval),
        "size_bytes": effect.size_bytes,
        "samples": effect.samples or None,
    })  # fmt: skip


def _interval(interval: Interval | None) -> dict[str, float] | None:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    return {"low": interval.low, "high": interval.high}


def _known(raw: dict[str, Any]) -> dict[str, Any]:
    return dict(_finite(raw))


def _finite(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in raw.items():
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            yield key, value
