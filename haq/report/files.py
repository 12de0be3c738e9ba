"""Rewrites what a lead reads in a run directory, `front.png` and `brief.txt`, from `run.json` and the history."""

from __future__ import annotations

from dataclasses import replace

from haq.candidate import Candidate
from haq.constraints import Constraints
from haq.front import front
from haq.report.brief import brief
from haq.report.plots import Panel, Picture, draw_front
from haq.rundir import Run
from haq.spec import Spec, spec_of_run
from haq.textfile import write_atomically
from haq.trust import Trust

PICTURE_FILE, BRIEF_FILE = "front.png", "brief.txt"


def write_report(run: Run) -> None:
    """Write the picture and the brief of a run, finished or not."""
    write_atomically(run.path / BRIEF_FILE, brief(spec_of(run), run.metric) + "\n")
    draw_front(picture_of(run), run.path / PICTURE_FILE)


def spec_of(run: Run) -> Spec:
    """The resolved spec that the run was started with."""
    return spec_of_run(run.info["spec"], where=f"{run.path}/run.json")


def picture_of(run: Run) -> Picture:
    """What `front.png` shows of a run."""
    spec = spec_of(run)
    # The spec names a target as the user did, which may be a path; run.json lists the profiles in the same order.
    limits = dict(zip(run.targets, map(spec.constraints, spec.hardware.targets), strict=True))
    panels = tuple(_panel(run, target, limits[target]) for target in run.targets)
    return Picture(str(run.info["provenance"].get("model", run.path.name)), spec.hardware.batch, panels, run.metric)


def _panel(run: Run, target: str, limits: Constraints) -> Panel:
    about = run.info["targets"][target]
    members = frozenset(point.candidate.number for point in front(run.history.candidates, target))
    fp32 = run.history.baseline.costs[target] if run.history.baseline else {}
    candidates = run.history.candidates
    if not run.metric.is_fraction:
        candidates = tuple(map(_as_change, candidates))
    return Panel(target, about["title"], Trust.from_json(about), candidates, members, limits, fp32)


def _as_change(candidate: Candidate) -> Candidate:
    """The candidate with its change against FP32 in place of a metric that has no percent and perhaps no upper end."""
    results = tuple(
        replace(r, measurement=replace(r.measurement, accuracy=-r.measurement.drop_points / 100))
        if r.measurement is not None
        else r
        for r in candidate.results
    )
    return replace(candidate, results=results)
