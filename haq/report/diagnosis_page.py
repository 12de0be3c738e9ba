"""Draws a diagnosis: how well each layer is represented, how its ranges are used, and the worst tensors' values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from haq.diagnose.evidence import Evidence, LayerEvidence, OperandEvidence, Range
from haq.diagnose.finding import Diagnosis

WEIGHT, OPERAND, OUTPUT = "#0b5fa5", "#d9822b", "#5b8c5a"
FOUND, QUIET, VALUES = "#b3261e", "#9aa3ad", "#c9d6e3"
DPI = 150
WORST = 6
"""Tensors whose histograms are drawn."""
CLEAR_DB = 3.0
"""Half a bit."""
LARGEST_RATIO = 64.0
"""Where the axis of ranges ends; what is beyond sits at its end."""


def draw_diagnosis(evidence: Evidence, diagnosis: Diagnosis, title: str, path: Path) -> None:
    """Write the picture; the ending of the path says the format (.png, .svg, .pdf)."""
    diagnosis_figure(evidence, diagnosis, title).savefig(path, dpi=DPI)


def diagnosis_figure(evidence: Evidence, diagnosis: Diagnosis, title: str) -> Figure:
    """The picture as a figure. Layers in which something was found are named in red."""
    layers = tuple(evidence.layers.values())
    worst = worst_operands(layers)
    rows = math.ceil(len(worst) / 3)
    # Names of layers stand upright below their axes and take as much room as the axes themselves.
    figure = Figure(figsize=(min(max(9.0, 0.2 * len(layers) + 2), 24.0), 7.2 + 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(7.2, max(2.5 * rows, 0.1)), hspace=0.02)
    upper, lower = parts[:, 0]
    found = frozenset(name for f in diagnosis.findings for name in (f.layer, *f.suspicion.layers))
    sqnr, ranges = upper.subplots(2, 1, sharex=True)
    _draw_sqnr(sqnr, layers)
    _draw_ranges(ranges, layers)
    _name_layers(ranges, layers, found)
    if worst:
        _draw_worst(lower, worst, rows)
    figure.suptitle(f"{title}\n{evidence.samples:,} samples looked at", fontsize=12)
    return figure


def worst_operands(layers: Sequence[LayerEvidence]) -> tuple[OperandEvidence, ...]:
    """The operands whose range loses most against the best one, as noise over signal.

    Three, to see what healthy ones look like, and up to WORST of those that lose at least CLEAR_DB.
    """
    harm = [(_noise(o.sqnr_db) - _noise(o.best_sqnr_db), o) for layer in layers for o in layer.operands]
    harmful = sorted((pair for pair in harm if pair[0] > 0), key=lambda pair: -pair[0])
    shown = [o for i, (_, o) in enumerate(harmful) if i < 3 or o.best_sqnr_db - o.sqnr_db >= CLEAR_DB]
    return tuple(shown[:WORST])


def _noise(sqnr_db: float) -> float:
    return float(10 ** (-sqnr_db / 10))


def _draw_sqnr(axes: Axes, layers: Sequence[LayerEvidence]) -> None:
    """Bars of the weight, the worst operand and the output alone; a part in which nothing is lost has none."""
    parts: tuple[tuple[str, str, list[float | None]], ...] = (
        ("weight", WEIGHT, [None if layer.weight is None else layer.weight.sqnr_db for layer in layers]),
        ("worst operand", OPERAND, [min((o.sqnr_db for o in layer.operands), default=None) for layer in layers]),
        ("output", OUTPUT, [None if layer.output is None else layer.output.sqnr_db for layer in layers]),
    )
    for i, (label, colour, values) in enumerate(parts):
        known = [(x, v) for x, v in enumerate(values) if v is not None and math.isfinite(v)]
        axes.bar(
            [x + 0.27 * (i - 1) for x, _ in known], [v for _, v in known], 0.27, color=colour, label=label, zorder=2
        )
    _tidy(axes, "SQNR, dB (more is better)")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.14), ncols=3, frameon=False, fontsize=9)


def _draw_ranges(axes: Axes, layers: Sequence[LayerEvidence]) -> None:
    """The range in use over the range of the data, from 1 up or down; and the share of the codes that is used."""
    axes.set_yscale("log", base=2)
    codes = axes.twinx()
    for x, layer in enumerate(layers):
        operands = [o for o in layer.operands if o.format.is_integer]
        width = 0.7 / max(len(operands), 1)
        for i, operand in enumerate(operands):
            at = x + width * (i - (len(operands) - 1) / 2)
            ratio = _ratio(operand.range, operand.seen)
            if ratio is not None:
                axes.bar(at, ratio - 1, 0.9 * width, bottom=1, color=VALUES, edgecolor=WEIGHT, linewidth=0.5, zorder=2)
            codes.plot(at, 100 * operand.codes_used, "o", markersize=3.5, color=OPERAND, zorder=3)
    axes.axhline(1, color="#222222", linewidth=0.8, zorder=3)
    largest = max([2.0, *(max(t, 1 / t) for t in (axes.get_ylim()[0], axes.get_ylim()[1]) if t > 0)])
    axes.set_ylim(1 / min(largest, LARGEST_RATIO), min(largest, LARGEST_RATIO))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x" if value >= 1 else f"1/{1 / value:g}x"))
    _tidy(axes, "range in use\nagainst the data's (bars)")
    codes.set_ylim(0, 105)
    codes.set_ylabel("codes used, % (dots)", color=OPERAND)
    codes.spines[["top", "left"]].set_visible(False)


def _ratio(used: Range, seen: Range) -> float | None:
    """How much wider the range in use is, cut to the axis; None where the data are constant."""
    width = seen[1] - seen[0]
    if not width > 0 or not math.isfinite(width):
        return None
    return float(np.clip((used[1] - used[0]) / width, 1 / LARGEST_RATIO, LARGEST_RATIO))


def _name_layers(axes: Axes, layers: Sequence[LayerEvidence], found: frozenset[str]) -> None:
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xticks(range(len(layers)), [f"{layer.layer}  {layer.precision}" for layer in layers], rotation=90)
    for label, layer in zip(axes.get_xticklabels(), layers, strict=True):
        label.set_fontsize(7 if len(layers) <= 60 else 5)
        if layer.layer in found:
            label.set_color(FOUND)
            label.set_fontweight("bold")


def _draw_worst(figure: SubFigure, worst: Sequence[OperandEvidence], rows: int) -> None:
    """One histogram each, with the range in use, the best one, and what calibration saw."""
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes, operand in zip(grid.flat, worst, strict=False):
        _draw_values(axes, operand)
    for axes in list(grid.flat)[len(worst) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_ylabel("numbers", fontsize=8)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _draw_values(axes: Axes, operand: OperandEvidence) -> None:
    axes.stairs(operand.counts, operand.edges, fill=True, color=VALUES, label="values in FP32", zorder=1)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)  # so that a single number can be seen
    bounds: list[tuple[Range, str, str, str]] = [
        (operand.range, WEIGHT, "-", "range in use"), (operand.best_range, OPERAND, "--", "best range")
    ]  # fmt: skip
    if operand.calibrated is not None:
        bounds.append((operand.calibrated, QUIET, ":", "calibration's range"))
    for (low, high), colour, style, label in bounds:
        axes.axvline(low, color=colour, linestyle=style, linewidth=1.4, label=label, zorder=2)
        axes.axvline(high, color=colour, linestyle=style, linewidth=1.4, zorder=2)
    axes.set_title(
        f"{operand.layer}, operand {operand.index} ({operand.format})\n"
        f"{operand.sqnr_db:.1f} dB in use, {operand.best_sqnr_db:.1f} dB at best", fontsize=8,
    )  # fmt: skip
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
