"""The spec as the brief that a reviewer reads before and after a run: constraint first, one line per decision."""

from __future__ import annotations

from haq.quality import DIRECTIONS, MainMetric, main_metric
from haq.spec import Spec
from haq.techniques import Stack

_KIND = {"mobile": "a mobile device", "server": "a server"}


def brief(spec: Spec, metric: MainMetric | None = None) -> str:
    """The text of the brief, one section per part of the template, several lines.

    metric: what drives the search, once a run knows its name and direction.
    """
    sections = (
        ("Scope", _scope(spec)),
        ("Hardware", f"{', '.join(spec.hardware.targets)}; batch {spec.hardware.batch}"),
        ("Accuracy", _accuracy(spec, metric)),
        ("Latency", _latency(spec)),
        ("Recovery", _recovery(spec)),
        ("Deployment", _deployment(spec)),
        ("Search", _search(spec)),
    )
    width = max(len(title) for title, _ in sections)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in sections)


def _scope(spec: Spec) -> str:
    scope = spec.scope
    parts = [scope.space + (f" built by {scope.model}" if scope.model else "")]
    parts += [f"weights {scope.weights}"] if scope.weights else []
    parts += [f"data {scope.data}"] if scope.data else []
    parts.append({"model": "one choice for the whole model", "block": "one choice per block"}.get(
        scope.granularity, "one choice per layer"
    ))  # fmt: skip
    parts += ["no natural groups"] if scope.grouping == "none" else []
    parts += [f"pinned: {', '.join(f'{k} = {v} bits' for k, v in scope.pins.items())}"] if scope.pins else []
    return "; ".join(parts)


def _accuracy(spec: Spec, metric: MainMetric | None) -> str:
    accuracy = spec.accuracy
    drop = accuracy.max_drop_points
    known = metric if metric is not None else _asked(spec)
    side = "below" if known is None or known.direction == "maximize" else "above"
    parts = [f"at most {drop:g} points {side} FP32" if drop is not None else "no limit on the drop"]
    limits = (
        (accuracy.max_class_drop_points, "no class more than {} points below FP32"),
        (accuracy.max_kl_nats, "KL divergence from FP32 at most {} nats"),
        (accuracy.min_agreement, "answers FP32's on at least {} of the samples"),
    )
    parts += [sentence.format(f"{limit:g}") for limit, sentence in limits if limit is not None]
    if known is not None:
        parts.append(f"metric {known.name}, {known.direction}d; a point of drop is {known.drop_formula}")
    else:
        parts.append(f"metric {accuracy.metric or 'of the task'}, in its own direction")
    parts.append(
        f"measured on {accuracy.samples:,} samples of the search split"
        if accuracy.samples
        else "measured on the whole search split"
    )
    parts.append(f"activation ranges by {accuracy.observer}")
    parts.append(f"weights by {Stack(accuracy.ptq)}")
    return "; ".join(parts)


def _asked(spec: Spec) -> MainMetric | None:
    """What the spec alone says of the metric; None where only the task or the metric itself knows its direction."""
    name, stated = spec.accuracy.metric, spec.accuracy.direction
    direction = stated.get(name or "") if isinstance(stated, dict) else stated
    direction = DIRECTIONS.get(name or "", direction)
    return None if name is None or direction is None else main_metric(name, direction, None)


def _latency(spec: Spec) -> str:
    parts = _limits(spec.latency.max_ms, "at most {} ms per batch")
    parts += _limits(spec.latency.max_rise_ms, "at most {} ms above FP32 on the same target")
    return "; ".join(parts) or "no limit"


def _recovery(spec: Spec) -> str:
    rungs = " -> ".join(map(str, spec.recovery.order))
    reserve = spec.recovery.reserve_points
    return f"layers fall back {rungs} bits" + (f"; {reserve:g} points of the drop kept in reserve" if reserve else "")


def _deployment(spec: Spec) -> str:
    deployment = spec.deployment
    parts = [f"to {_KIND[deployment.kind]}"] if deployment.kind else []
    parts += _limits(deployment.max_size_mb, "at most {} MB of weights")
    parts += _limits(deployment.max_memory_mb, "at most {} MB of activations at the peak")
    parts += _limits(deployment.max_energy_mj, "at most {} mJ per batch")
    parts.append(f"handed over as {', '.join(deployment.formats)}" if deployment.formats else "nothing handed over")
    return "; ".join(parts)


def _search(spec: Spec) -> str:
    search = spec.search
    parts = [f"{search.trials} trials of {search.sampler}, seed {search.seed}"]
    parts += ["until it converges"] if search.until_converged else []
    parts += [f"at most {search.timeout_s:g} s"] if search.timeout_s else []
    parts.append("hopeless candidates are stopped early" if search.racing else "every candidate measured in full")
    parts += [f"storage {search.storage}"] if search.storage != "sqlite" else []
    return "; ".join(parts)


def _limits(limit: float | dict[str, float] | None, sentence: str) -> list[str]:
    """The sentence with its number, once per target where they differ; nothing where no limit is set."""
    if limit is None:
        return []
    if isinstance(limit, dict):
        return [f"{target}: {sentence.format(f'{value:g}')}" for target, value in limit.items()]
    return [sentence.format(f"{limit:g}")]
