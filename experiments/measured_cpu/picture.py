"""Draws measured against modelled latency, with a band of 20 %."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

COLOURS = {"fp32": "#222222", "int8": "#0b5fa5", "mixed": "#d9822b"}
MARKS = "osD^vP*X"


def draw(rows: pd.DataFrame, machine: str, path: Path) -> None:
    """Write the picture. rows: with the columns of results.csv."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    span = np.array(
        [0.7 * rows[["measured_ms", "modelled_ms"]].min().min(), 1.4 * rows[["measured_ms", "modelled_ms"]].max().max()]
    )
    axes.fill_between(span, span / 1.2, span * 1.2, color="#9aa3ad", alpha=0.25, linewidth=0, label="within 20 %")
    axes.plot(span, span, color="#9aa3ad", linewidth=1)
    for mark, (model, ours) in zip(MARKS, rows.groupby("model", sort=False), strict=False):
        for config, one in ours.groupby("config", sort=False):
            axes.scatter(one.measured_ms, one.modelled_ms, marker=mark, s=46, color=COLOURS[str(config)], zorder=3)
        axes.scatter([], [], marker=mark, color="#9aa3ad", s=46, label=str(model))
    for config, colour in COLOURS.items():
        axes.scatter([], [], marker="s", color=colour, s=30, label=config)
    axes.set(xscale="log", yscale="log", xlim=span, ylim=span, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("measured, ms per inference (ONNX Runtime, batch 1)")
    axes.set_ylabel("modelled, ms per inference (haq, measured profile)")
    axes.set_title(f"{machine}\nno network took part in the fit", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=150)
