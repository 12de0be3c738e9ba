"""Draws `front.png`: size against accuracy and latency against accuracy, one column per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from haq.accuracy import Measurement
from haq.candidate import Candidate, TargetResult
from haq.constraints import Constraints
from haq.pareto import non_dominated
from haq.quality import ACCURACY, MainMetric
from haq.trust import Trust

FRONT, DOMINATED, INFEASIBLE, LIMIT, BASELINE = "#0b5fa5", "#9aa3ad", "#c98b8b", "#d9822b", "#222222"
DPI = 150
UNIFORM_8 = "seed:uniform8"
"""The origin of the candidate that asks 8 bits everywhere (or the nearest that pins and rules allow)."""


@dataclass(frozen=True)
class Panel:
    """One target's column. trust: in the modelled latency. front: numbers of the candidates on its front.

    fp32_costs: figures of the legalized FP32 model there, empty when nothing was measured yet.
    """

    target: str
    title: str
    trust: Trust
    candidates: tuple[Candidate, ...]
    front: frozenset[int]
    limits: Constraints
    fp32_costs: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """All that `front.png` shows. batch: what every latency is for.

    metric: on the y axis, in percent; where it is no fraction, candidates carry their change against FP32 instead.
    """

    network: str
    batch: int
    panels: tuple[Panel, ...]
    metric: MainMetric = ACCURACY


@dataclass(frozen=True)
class _Axis:
    """A cost on the x axis: its figure, its scale to the unit of the label, and the limits that bound it."""

    figure: str
    scale: float
    label: str
    limit: str


def draw_front(picture: Picture, path: Path) -> None:
    """Write the picture as a PNG file."""
    front_figure(picture).savefig(path, dpi=DPI)


def front_figure(picture: Picture) -> Figure:
    """The picture as a figure."""
    axes = (
        _Axis("size_bytes", 1e-6, "size of the weights, MB", "max_size_bytes"),
        _Axis("latency_ms", 1.0, f"modelled latency, ms per batch of {picture.batch}", "max_latency_ms"),
    )
    columns, is_single = len(picture.panels), len(picture.panels) == 1
    # One target fills a row with its two plots; several stand side by side, one column each.
    figure = Figure(figsize=(10.5, 5.4) if is_single else (4.7 * columns, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, 2, squeeze=False).T if is_single else figure.subplots(2, columns, squeeze=False)
    for column, panel in enumerate(picture.panels):
        for row, axis in enumerate(axes):
            _draw_panel(grid[row][column], panel, axis)
        if not is_single:
            grid[0][column].set_title(_device(panel), fontsize=10)
    for row in grid:
        row[0].set_ylabel(_y_label(picture.metric))
    title = headline(picture) + (f"\n{_device(picture.panels[0])}" if is_single else "")
    figure.suptitle(title, fontsize=12)
    _legend(figure, [axes for row in grid for axes in row])
    return figure


def headline(picture: Picture) -> str:
    """What was measured on what: network, split and number of samples; and that latency is modelled."""
    measured = _measurement(picture)
    if measured is None:
        return f"{picture.network}: no candidate was measured"
    n = measured.of_samples or measured.samples
    samples = f", n = {n:,}" if n > 1 else ""
    return f"{picture.network}: {picture.metric.noun} measured (split {measured.split!r}{samples}), latency modelled"


def _y_label(metric: MainMetric) -> str:
    if metric.is_fraction:
        return f"measured {metric.noun}, %"
    return f"measured change of {metric.noun} against FP32, points (up is better)"


def _device(panel: Panel) -> str:
    return f"{panel.target}: {panel.title}\nlatency modelled {panel.trust}"


def _draw_panel(axes: Axes, panel: Panel, axis: _Axis) -> None:
    """One cost against accuracy: dominated and infeasible points, the front, baselines and limits."""
    shown = [(c, c.on(panel.target)) for c in panel.candidates]
    shown = [(c, r) for c, r in shown if r.measurement is not None and axis.figure in r.costs]
    axes.set_xlabel(axis.label)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if not shown:
        axes.text(0.5, 0.5, "no measured candidate", transform=axes.transAxes, ha="center", color=DOMINATED)
        return
    fp32 = _fp32_percent(shown[0][1])
    floor = fp32 - _depth(panel, [_points(r) for c, r in shown if c.number in panel.front])
    front = [r for c, r in shown if c.number in panel.front]
    others = [r for c, r in shown if c.number not in panel.front]
    _scatter(axes, [r for r in others if r.is_feasible], axis, floor, ("o", DOMINATED, "dominated"))
    refused = [r for r in others if not r.is_feasible and not _is_stopped(r)]
    _scatter(axes, [r for r in others if _is_stopped(r)], axis, floor, ("+", DOMINATED, "stopped early"))
    _scatter(axes, refused, axis, floor, ("x", INFEASIBLE, "breaks a limit"))
    _draw_front_line(axes, front, axis, floor)
    for result in (r for c, r in shown if c.origin == UNIFORM_8):
        _draw_baseline(axes, (_x(result, axis), max(_percent(result), floor)), "8-bit", "D")
    if axis.figure in panel.fp32_costs:
        _draw_baseline(axes, (panel.fp32_costs[axis.figure] * axis.scale, fp32), "FP32", "*")
    _draw_limits(axes, panel, axis, fp32)
    top = max([fp32, *(_percent(r) for _, r in shown), *(_interval(r)[1] for r in front)])
    axes.set_ylim(floor, top + 0.12 * (top - floor))
    axes.margins(x=0.12)


def _is_stopped(result: TargetResult) -> bool:
    """Whether its accuracy is an estimate from a part of the samples."""
    return result.measurement is not None and result.measurement.is_partial


def _scatter(
    axes: Axes, results: Sequence[TargetResult], axis: _Axis, floor: float, style: tuple[str, str, str]
) -> None:
    """Points in one style; those below the floor sit on it as arrows, so that none is hidden silently."""
    marker, colour, label = style
    inside = [r for r in results if _percent(r) > floor]
    below = [r for r in results if _percent(r) <= floor]
    if inside:
        xs, ys = [_x(r, axis) for r in inside], [_percent(r) for r in inside]
        axes.scatter(xs, ys, s=22, marker=marker, color=colour, alpha=0.75, linewidths=1.1, label=label, zorder=2)
    if below:
        xs = [_x(r, axis) for r in below]
        axes.scatter(
            xs, [floor] * len(xs), s=30, marker="v", color=colour, alpha=0.75, linewidths=0, clip_on=False, zorder=2,
            label="below the axis",
        )  # fmt: skip


def _draw_front_line(axes: Axes, front: Sequence[TargetResult], axis: _Axis, floor: float) -> None:
    """The front's members with 95 % intervals; the line joins those that nobody beats in this projection."""
    if not front:
        return
    _scatter(axes, [r for r in front if _percent(r) <= floor], axis, floor, ("v", FRONT, "front"))
    xs = np.array([_x(r, axis) for r in front])
    ys = np.array([_percent(r) for r in front])
    best = np.flatnonzero(non_dominated(np.stack([xs, -ys], axis=1)))
    best = best[np.argsort(xs[best])]
    axes.plot(xs[best], ys[best], color=FRONT, linewidth=1.4, alpha=0.8, zorder=3)
    inside = ys > floor
    axes.scatter(xs[inside], ys[inside], s=34, color=FRONT, edgecolors="white", linewidths=0.6, zorder=5, label="front")
    for result, x, y in zip(front, xs, ys, strict=True):
        low, high = _interval(result)
        if y > floor and low < high:
            axes.vlines(x, max(low, floor), high, color=FRONT, linewidth=0.9, alpha=0.45, zorder=4)


def _draw_baseline(axes: Axes, at: tuple[float, float], name: str, marker: str) -> None:
    axes.scatter(
        [at[0]], [at[1]], s=110 if marker == "*" else 42, marker=marker, facecolors="white", edgecolors=BASELINE,
        linewidths=1.2, zorder=6, label=f"uniform {name}", clip_on=False,
    )  # fmt: skip
    axes.annotate(
        name, at, xytext=(-8, 4), textcoords="offset points", fontsize=8, ha="right", color=BASELINE, zorder=7,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _draw_limits(axes: Axes, panel: Panel, axis: _Axis, fp32: float) -> None:
    """The user's limits as lines: the largest drop across, the cost's limit upright."""
    limits = panel.limits.set_limits()
    if (drop := limits.get("max_drop_points")) is not None:
        axes.axhline(fp32 - drop, label="limit", color=LIMIT, linestyle="--", linewidth=1.1, zorder=1)
    bounds = [limits[axis.limit]] if axis.limit in limits else []
    if axis.figure == "latency_ms" and "max_latency_rise_ms" in limits and axis.figure in panel.fp32_costs:
        bounds.append(panel.fp32_costs[axis.figure] + limits["max_latency_rise_ms"])
    if bounds:
        axes.axvline(min(bounds) * axis.scale, label="limit", color=LIMIT, linestyle="--", linewidth=1.1, zorder=1)


def _legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend under the plots, where it covers nothing."""
    entries: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if entries:
        legend = figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", frameon=False, fontsize=9,
            ncols=min(len(entries), int(figure.get_figwidth() / 1.4)),
        )  # fmt: skip
        legend.set_title("bars on the front: 95 % interval of the difference to FP32 on the same samples")
        legend.get_title().set_fontsize(9)


def _depth(panel: Panel, front_drops: Sequence[float]) -> float:
    """How many points below FP32 the accuracy axis ends: the limit and the useful front, not the collapsed models."""
    limit = panel.limits.max_drop_points
    useful = [drop for drop in front_drops if drop <= (10.0 if limit is None else 3 * limit)]
    return max(1.15 * max(useful, default=0.0), 0.0 if limit is None else 1.6 * limit, 1.0)


def _x(result: TargetResult, axis: _Axis) -> float:
    return result.costs[axis.figure] * axis.scale


def _measured(result: TargetResult) -> Measurement:
    assert result.measurement is not None, "only measured candidates are drawn"
    return result.measurement


def _percent(result: TargetResult) -> float:
    return 100 * _measured(result).accuracy


def _points(result: TargetResult) -> float:
    return _measured(result).drop_points


def _fp32_percent(result: TargetResult) -> float:
    return _percent(result) + _points(result)


def _interval(result: TargetResult) -> tuple[float, float]:
    """The accuracy's 95 % interval in percent, from the paired difference to FP32; no width where unknown."""
    drop, fp32 = _measured(result).drop_interval, _fp32_percent(result)
    return (fp32 - drop.high, fp32 - drop.low) if drop is not None else (_percent(result), _percent(result))


def _measurement(picture: Picture) -> Measurement | None:
    """Any measurement of the run: all are on the same split."""
    for panel in picture.panels:
        for candidate in panel.candidates:
            if (measured := candidate.on(panel.target).measurement) is not None:
                return measured
    return None
