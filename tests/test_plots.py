"""`front.png`: what the axes, the title, the legend and the lines say, on a synthetic run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from haq.accuracy import Scores, compare
from haq.candidate import Candidate, TargetResult
from haq.constraints import Constraints
from haq.precision import Assignment, Precision
from haq.report.plots import Panel, Picture, draw_front, front_figure, headline
from haq.trust import Trust

LAYERS = ("a", "b")
FP32 = {"size_bytes": 8e6, "latency_ms": 2.0}
REFERENCE: Scores = np.array([1.0] * 96 + [0.0] * 4)


def candidate(number: int, bits: tuple[int, int], wrong: int, targets: tuple[str, ...]) -> Candidate:
    """Size is 1 MB per 8 bits, latency 1 ms per 32; `wrong` further samples of 100 are misclassified."""
    scores = REFERENCE.copy()
    scores[:wrong] = 0.0
    costs = {"size_bytes": sum(bits) / 8 * 1e6, "latency_ms": sum(bits) / 32}
    executed = Assignment.uniform(LAYERS, Precision.parse("int8"))
    measured = compare(REFERENCE, scores, "search")
    violations = ("drop_points 5 exceeds max_drop_points 2",) if wrong > 2 else ()
    results = tuple(TargetResult(t, executed, (), costs, measured, violations) for t in targets)
    origin = "seed:uniform8" if bits == (8, 8) else "tpe"
    return Candidate(number, origin, Assignment.of(dict(zip(LAYERS, bits, strict=True))), results)


def picture(targets: tuple[str, ...] = ("a100", "mobile"), *, max_drop: float | None = 2.0) -> Picture:
    found = (
        candidate(0, (32, 32), 0, targets),
        candidate(1, (8, 8), 1, targets),
        candidate(2, (8, 4), 2, targets),
        candidate(3, (16, 32), 1, targets),
        candidate(4, (8, 16), 3, targets),
        candidate(5, (4, 4), 90, targets),
    )
    limits = Constraints(max_drop_points=max_drop, max_size_bytes=6e6)
    panels = tuple(
        Panel(t, f"device {t}", Trust("facts only", 0.5), found, frozenset({0, 1, 2}), limits, FP32) for t in targets
    )
    return Picture("tiny", 8, panels)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def test_one_column_per_target_with_units_on_every_axis() -> None:
    axes = front_figure(picture()).get_axes()
    assert len(axes) == 4
    assert [a.get_xlabel() for a in axes] == [
        *["size of the weights, MB"] * 2,
        *["modelled latency, ms per batch of 8"] * 2,
    ]
    assert {a.get_ylabel() for a in axes} == {"measured accuracy, %", ""}


def test_titles_say_what_was_measured_and_what_is_modelled() -> None:
    drawn = texts(front_figure(picture()))
    assert headline(picture()) == "tiny: accuracy measured (split 'search', n = 100), latency modelled"
    for part in (
        headline(picture()),
        "a100: device a100",
        "mobile: device mobile",
        "latency modelled +-50 % (facts only)",
    ):
        assert part in drawn


def test_the_legend_names_each_kind_of_point_once() -> None:
    (legend,) = front_figure(picture()).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == sorted(
        ["dominated", "breaks a limit", "below the axis", "front", "uniform FP32", "uniform 8-bit", "limit"]
    )


def test_limits_are_lines_at_their_values() -> None:
    axes = front_figure(picture()).get_axes()[0]
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    # FP32 is right on 96 of 100 samples, so a drop of two points ends at 94 %.
    assert dashed[0].get_ydata() == pytest.approx([94.0, 94.0])
    assert dashed[1].get_xdata() == pytest.approx([6.0, 6.0])


def test_the_front_is_joined_in_order_of_its_cost() -> None:
    axes = front_figure(picture()).get_axes()[0]
    line = next(line for line in axes.get_lines() if line.get_linestyle() == "-")
    assert line.get_xdata() == pytest.approx([1.5, 2.0, 8.0])
    assert line.get_ydata() == pytest.approx([94.0, 95.0, 96.0])


def test_a_collapsed_candidate_does_not_squash_the_axis() -> None:
    axes = front_figure(picture()).get_axes()[0]
    assert axes.get_ylim()[0] > 90  # the collapsed one is at 6 %


def test_a_run_with_nothing_measured_still_draws(tmp_path: Path) -> None:
    empty = Picture("tiny", 1, (Panel("a100", "A100", Trust("calibrated"), (), frozenset(), Constraints(), {}),))
    draw_front(empty, tmp_path / "front.png")
    assert "no measured candidate" in texts(front_figure(empty))


def test_one_or_several_targets_become_a_png(tmp_path: Path) -> None:
    for targets in (("a100",), ("a100", "mobile", "tpu-v4")):
        path = tmp_path / f"{len(targets)}.png"
        draw_front(picture(targets, max_drop=None), path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_limit_on_the_latency_rise_is_drawn_from_fp32_on() -> None:
    (panel,) = picture(("a100",)).panels
    limited = Picture("tiny", 8, (replace(panel, limits=Constraints(max_latency_rise_ms=0.5)),))
    latency = front_figure(limited).get_axes()[1]
    (dashed,) = (line for line in latency.get_lines() if line.get_linestyle() == "--")
    assert dashed.get_xdata() == pytest.approx([2.5, 2.5])
