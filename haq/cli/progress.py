"""How a running search looks: a bar with time left and the best points in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from haq.front import Point

if TYPE_CHECKING:  # the search loads Optuna; its events are only looked at once it runs
    from haq.engine.events import Event, SensitivityMeasured, Started

LOG_EVERY_S = 10.0
"""How often a log gets a line while candidates are measured."""


@contextmanager
def shown_progress() -> Iterator[Callable[[Event], None]]:
    """The function that a search reports to; it writes to stderr, so that stdout stays the result's."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Log()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}  {task.fields[best]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)


@contextmanager
def shown_steps() -> Iterator[Callable[[str, int, int], None]]:
    """The function that a piece of work reports to: what is done, how much of it, of how much; 0 of 0 is unknown.

    A terminal shows a bar, a log a line for each kind of work and every LOG_EVERY_S; both with the time left, as far
    as the pace so far tells.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _StepLog()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")
        pace = _Pace()

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None, left=pace.left(done, total))

        yield update


class _Pace:
    """How long is left; it changes because it remembers when counting began."""

    def __init__(self) -> None:
        self._start_s: float | None = None

    def left(self, done: int, total: int) -> str:
        """`12 s left`, or nothing before anything is done."""
        now = time.monotonic()
        if self._start_s is None or not total or not done:
            self._start_s = now
            return ""
        return f"{duration((now - self._start_s) / done * (total - done))} left" if done and done < total else ""


class _StepLog:
    """Writes steps that are counted to a log, at a modest rate; it changes because it knows what it last wrote, when.

    Steps of unknown length come first and may fail: an error stays one line.
    """

    def __init__(self) -> None:
        self._last_s, self._what, self._pace = -LOG_EVERY_S, "", _Pace()

    def __call__(self, what: str, done: int, total: int) -> None:
        now, left = time.monotonic(), self._pace.left(done, total)
        if not done or not total or (what == self._what and now - self._last_s < LOG_EVERY_S):
            return
        self._last_s, self._what = now, what
        click.echo(f"{what} {done}/{total}{', ' + left if left else ''}", err=True)


class _Bar:
    """Draws events in a terminal; it changes because the bar does."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("loading the network and its data", total=None, left="", best="")

    def __call__(self, event: Event) -> None:
        from haq.engine import events

        if isinstance(event, events.CandidateDone):
            self._bar.update(
                self._task, description="measuring", completed=event.done, total=event.trials,
                left=f"{duration(event.left_s)} left", best=best_line(event.best),
            )  # fmt: skip
        elif isinstance(event, events.BaselineMeasured):
            self._bar.update(self._task, description="calibrating", left=f"{duration(event.estimate_s)} left")
        elif isinstance(event, events.SensitivityProgress):
            self._bar.update(
                self._task, description="sensitivities", completed=event.done, total=event.total, left="", best=""
            )
        elif isinstance(event, events.Validated):
            self._bar.update(self._task, description="validating", completed=event.done, total=event.total, left="")
        for line in lines(event):
            self._bar.console.print(line, soft_wrap=True)


class _Log:
    """Writes events to a log at a modest rate; it changes because it knows when it last wrote."""

    def __init__(self) -> None:
        self._last_s = -LOG_EVERY_S

    def __call__(self, event: Event) -> None:
        from haq.engine import events

        if isinstance(event, events.CandidateDone):
            now = time.monotonic()
            if now - self._last_s >= LOG_EVERY_S or event.done == event.trials:
                self._last_s = now
                best = best_line(event.best)
                text = f"{event.done}/{event.trials} measured, {duration(event.left_s)} left"
                click.echo(f"{text}; {best}" if best else text, err=True)
        for line in lines(event):
            click.echo(line, err=True)


def lines(event: Event) -> list[str]:
    """What an event is worth saying once, in a terminal and in a log alike."""
    from haq.engine import events

    if isinstance(event, events.Started):
        before = f"; {event.found} candidates are there from before" if event.found else ""
        return [f"searching {_space(event)}; {event.trials} trials{before}"]
    if isinstance(event, events.BaselineMeasured):
        measured = ", ".join(
            f"{event.metric.shown(m.accuracy)} on {split}" + (f" (n = {m.samples:,})" if m.samples > 1 else "")
            for split, m in event.measurements.items()
        )
        noun = "" if event.metric.noun == "accuracy" else f"{event.metric.noun} "
        return [f"FP32: {noun}{measured}; the search will take about {duration(event.estimate_s)}"]
    if isinstance(event, events.SensitivityMeasured):
        return sensitivity_lines(event)
    if isinstance(event, events.Validated) and event.failure is not None:
        return [f"a point of the front has no held-out measurement: {event.failure.reason}"]
    if isinstance(event, events.Notice):
        return [event.text]
    if isinstance(event, events.Finished):
        s = event.summary
        early = f", {s.stopped_early} stopped early" if s.stopped_early else ""
        if s.stopped_early and s.mean_share is not None:
            early += f" ({s.mean_share:.0%} of the samples on average over all candidates)"
        return [
            f"ended by {event.reason}: {s.candidates} candidates, {s.infeasible} infeasible by cost alone"
            f"{f' ({100 * s.infeasible / s.candidates:.0f} %)' if s.infeasible else ''}, "
            f"{event.repeats} proposals replaced that would have been executed like an earlier one, "
            f"{s.measurements} measurements{early}, {s.sample_forwards:,} sample-forwards, "
            f"{duration(s.seconds)} of measuring"
        ]
    return []


def _space(event: Started) -> str:
    """`1e+09 assignments of 15 free groups (21 layers), 1e+07 of them different on mobile; about 38 % keep the ...`."""
    on = " and ".join(event.targets)
    different = "all" if event.effective_size == event.space_size else f"{_count(event.effective_size)} of them"
    text = f"{_count(event.space_size)} assignments of {event.groups} free groups ({event.layers} layers), {different}"
    if not event.kept:
        return f"{text} different on {on}"
    whole = event.drawn == event.space_size
    each = [
        f"{100 * share:.3g} %" + (f" on {name}" if len(event.targets) > 1 else "") for name, share in event.kept.items()
    ]
    sample = "all were priced" if whole else f"{event.drawn:,} drawn at random"
    return f"{text} different on {on}; {'' if whole else 'about '}{' and '.join(each)} keep the cost limits ({sample})"


def _count(number: int) -> str:
    """Three digits; numbers that no float holds as their power of ten."""
    return f"{number:.3g}" if number < 10**300 else f"1e+{int(math.log10(number))}"


def sensitivity_lines(event: SensitivityMeasured) -> list[str]:
    """What was measured, and how far sums of it can be trusted."""
    found = event.additivity
    text = (
        f"sensitivities: {event.pieces} groups at a precision, {event.samples} calibration samples, "
        f"{event.sample_forwards:,.0f} sample-forwards"
    )
    if found.rank_correlation is not None:
        text += f"; sums rank {found.pairs} measured pairs at {found.rank_correlation:.2f}"
    return [text] if found.warning is None else [text, found.warning]


def best_line(best: Mapping[str, Point]) -> str:
    """The smallest good point per target: `tpu-v4 2.87 MB -0.31 pt`."""
    return " | ".join(
        f"{target} {point.losses[0] / 1e6:.2f} MB {0.0 - point.losses[2]:+.2f} pt" for target, point in best.items()
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
