"""Draws what the search experiments found: the true front, hypervolume against evaluations, and overheads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from haq.report.plots import DOMINATED, DPI, FRONT, LIMIT

COLOURS = {
    "haq": FRONT,
    "nsga2": "#d55e00",
    "tpe": "#009e73",
    "random": "#7f7f7f",
    "gp": "#cc79a7",
    "nsga3": "#e69f00",
    "qmc": "#56b4e9",
}


def draw_truth(every: NDArray[np.float64], front: NDArray[np.float64], curves: pd.DataFrame, path: Path) -> None:
    """Every assignment with the true front, and each sampler's relative hypervolume: median and range of its seeds.

    every, front: (n, 3) losses. curves: `sampler`, `seeds`, `seed`, `evaluations`, `relative`.
    """
    figure = _figure(13, 5)
    left, right = figure.subplots(1, 2)
    left.scatter(every[:, 0] / 1e3, every[:, 2], s=4, color=DOMINATED, label=f"all {len(every):,} assignments")
    shown = left.scatter(front[:, 0] / 1e3, front[:, 2], s=14, c=1e3 * front[:, 1], label=f"{len(front)} on the front")
    figure.colorbar(shown, ax=left, label="modelled latency, us")
    left.set(xlabel="size of the weights, kB", ylabel="drop, points (1,000 digits)", title="the whole space")
    left.legend(fontsize=8)
    grid = np.arange(1, np.ceil(curves.evaluations.max()) + 1)
    for (sampler, seeds), runs in curves.groupby(["sampler", "seeds"], sort=False):
        steps = np.array([_steps(run.evaluations, run.relative, grid) for _, run in runs.groupby("seed")])
        style = {"color": COLOURS[str(sampler)], "linestyle": "-" if seeds else "--"}
        right.plot(grid, np.median(steps, axis=0), label=f"{sampler}{'' if seeds else ', no seeds'}", **style)
        right.fill_between(grid, steps.min(axis=0), steps.max(axis=0), color=COLOURS[str(sampler)], alpha=0.12)
    right.axhline(0.99, color=LIMIT, linewidth=0.8)
    right.set(xlabel="evaluations", ylabel="hypervolume, of the true front's", ylim=(0.8, 1.002))
    right.set_title("median and range of the runs; the line is 99 %")
    _finish(figure, right, path)


def draw_curves(space: str, curves: Mapping[str, pd.DataFrame], about: str, path: Path) -> None:
    """Hypervolume against evaluations (logarithmic), a line per run. about: the reference point and the samples."""
    figure = _figure(7, 5)
    axes = figure.subplots()
    for name, found in curves.items():
        colour, is_seeded = COLOURS[name.split("-")[0]], "unseeded" not in name
        axes.step(
            found.evaluations, found.hypervolume, where="post", color=colour, linestyle="-" if is_seeded else "--",
            label=name,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="evaluations", ylabel="hypervolume, of the reference box")
    axes.set_title(f"{space}: {about}", fontsize=9)
    _finish(figure, axes, path)


def draw_overhead(found: pd.DataFrame, evaluations_s: Mapping[str, float], path: Path) -> None:
    """Seconds per trial beside 5 % of each network's evaluation. found: `sampler`, `groups`, `overhead_s`."""
    figure = _figure(7, 5)
    axes = figure.subplots()
    names = [f"{row.sampler}\n{row.groups} groups" for row in found.itertuples()]
    axes.bar(names, found.overhead_s, color=[COLOURS[name] for name in found.sampler])
    for space, seconds in evaluations_s.items():
        axes.axhline(0.05 * seconds, color=LIMIT, linewidth=0.8)
        axes.annotate(f"5 % of {space}", (0.01, 0.05 * seconds), xycoords=("axes fraction", "data"), fontsize=7)
    axes.set(yscale="log", ylabel="seconds per trial, evaluation apart")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(visible=True, axis="y", linewidth=0.3, alpha=0.5)
    figure.savefig(path, dpi=DPI)


def _steps(x: pd.Series, y: pd.Series, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that a curve holds at each place of the grid, 0 before its first."""
    places = np.searchsorted(x.to_numpy(), grid + 1e-9, side="right")
    return np.concatenate([[0.0], y.to_numpy()])[places]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(visible=True, linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=DPI)
