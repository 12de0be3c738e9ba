"""The guide on a small network on real profiles, against all 64 assignments."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import residual
from numpy.typing import NDArray
from search_fakes import Accuracy

from haq.constraints import Constraints
from haq.engine.guide import Guide
from haq.engine.problem import Problem, baseline_costs, executed_by, reference_point
from haq.engine.targets import profile_target
from haq.hardware.profile import load_profile
from haq.pareto import hypervolume
from haq.precision import Assignment
from haq.sensitivity import Effect, Sensitivity, pieces_of
from haq.space import build_space
from haq.surrogate import PRIOR_SLOPE, Observations

NET = residual()
LOSS = {4: 0.02, 8: 0.001, 16: 0.00001}
FACTOR = {"a": 4.0, "b": 1.0, "c": 2.0}


def lost(piece: Assignment) -> float:
    """Made up: layer b bears most, and fewer weight bits cost more."""
    return sum(LOSS[piece.precision(name).weight.bits] * FACTOR[name] for name in piece)


def problem(*names: str, limits: Constraints = Constraints(), **space: object) -> Problem:  # noqa: B008
    targets = tuple(profile_target(NET, load_profile(name), limits) for name in names)
    return Problem(NET, build_space(NET, **space), targets, Accuracy())  # type: ignore[arg-type]


def sensitivity(asked: Problem, of: Callable[[Assignment], float] = lost) -> Sensitivity:
    pieces = pieces_of(asked.space, [executed_by(target) for target in asked.targets])
    return Sensitivity("kl", 64, {piece: Effect(of(piece), None, 64) for piece in pieces}, (), 64.0)


def guide(asked: Problem, found: Sensitivity | None = None, seed: int = 0) -> Guide:
    return Guide(asked, baseline_costs(asked), found or sensitivity(asked), seed)


def every(asked: Problem) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(group.bits)) for group in asked.space.groups)))


def losses(asked: Problem, target: int, points: list[tuple[int, ...]], of: Sensitivity) -> NDArray[np.float64]:
    """(n, 3) size, latency and predicted drop of each, one by one; infinite where it breaks a limit on cost."""
    view = asked.targets[target]
    table = of.losses(asked.space, executed_by(view))
    rows = []
    for levels in points:
        costs = view.costs(view.legalize(asked.space.assignment(levels))[0])
        drop = PRIOR_SLOPE * sum(row[level] for row, level in zip(table, levels, strict=True))
        kept = view.constraints.judge(costs, cheap=True).is_feasible
        rows.append([costs["size_bytes"], costs["latency_ms"], drop] if kept else [np.inf] * 3)
    return np.array(rows)


def is_beaten(point: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    slack = 1e-9 * np.abs(point)
    return bool(((others <= point + slack).all(axis=1) & (others < point - slack).any(axis=1)).any())


@pytest.mark.parametrize("name", ["reference", "a100", "mobile", "tpu-v4"])
def test_what_is_planned_is_on_the_front_of_all_assignments_and_adds_most_first(name: str) -> None:
    asked = problem(name)
    found, base = sensitivity(asked), baseline_costs(asked)[name]
    planned = guide(asked).plan([])
    truth = losses(asked, 0, every(asked), found)
    own = losses(asked, 0, list(planned), found)
    assert len(planned) >= 4
    assert not any(is_beaten(point, truth) for point in own)
    reference = reference_point(asked.targets[0], base)
    assert hypervolume(own[:1], reference) == pytest.approx(max(hypervolume(p[None], reference) for p in truth))
    assert hypervolume(own, reference) >= 0.98 * hypervolume(truth, reference)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_limits_and_pins_hold_for_what_is_planned_and_proposed(data: st.DataObject) -> None:
    pins = data.draw(st.sampled_from(({}, {"a": 8}, {"b": 16})))
    free = problem("reference", pins=pins)
    costs = losses(free, 0, every(free), sensitivity(free))
    size, latency = (float(data.draw(st.sampled_from(sorted(costs[:, axis])))) for axis in (0, 1))
    asked = problem("reference", limits=Constraints(max_size_bytes=size, max_latency_ms=latency), pins=pins)
    truth = losses(asked, 0, every(asked), sensitivity(asked))
    planned = guide(asked).plan([asked.space.uniform(32)])
    proposed = guide(asked).propose(3, *blank(asked), lambda levels: 1)
    for levels in (*planned, *([] if proposed is None else [proposed])):
        point = losses(asked, 0, [levels], sensitivity(asked))[0]
        assert np.isfinite(point).all()
        assert not is_beaten(point, truth) or levels == proposed


def test_what_is_asked_anyway_is_not_planned_and_what_breaks_limits_hides_nothing() -> None:
    asked = problem("reference")
    first = guide(asked).plan([])
    rest = guide(asked).plan(first[:3])
    assert set(first[:3]).isdisjoint(rest)
    assert rest
    # A start beyond the limit on memory would beat others in size, latency and drop.
    base = baseline_costs(asked)["reference"]
    peaks = sorted({asked.targets[0].costs(asked.targets[0].legalize(asked.space.assignment(p))[0])
                    ["activation_peak_bytes"] for p in every(asked)})  # fmt: skip
    assert peaks[-1] == base["activation_peak_bytes"]
    tight = problem("reference", limits=Constraints(max_memory_bytes=peaks[0]))
    beyond = [p for p in every(tight) if not np.isfinite(losses(tight, 0, [p], sensitivity(tight))).all()]
    assert beyond
    assert guide(tight).plan(beyond) == guide(tight).plan([])


def without(asked: Problem, found: Sensitivity, unknown: str, bits: tuple[int, ...], infinite: str) -> Sensitivity:
    """Layer `unknown` has no effect at these weight bits, and the outputs with `infinite` in fp16 are not finite."""
    kept = {p: e for p, e in found.effects.items() if not (unknown in p and p.precision(unknown).weight.bits in bits)}
    for piece in kept:
        if infinite in piece and piece.precision(infinite).weight.bits == 16:
            kept[piece] = Effect(np.inf, None, 64)
    return Sensitivity("kl", 64, kept, (), 64.0)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_levels_of_unknown_or_infinite_loss_are_never_planned_nor_proposed(scale: float) -> None:
    asked = problem("reference")
    whole = sensitivity(asked, lambda piece: scale * lost(piece))
    found = without(asked, whole, "b", (4, 8), "c")
    a, b, c = (next(i for i, g in enumerate(asked.space.groups) if g.layers == (name,)) for name in "abc")
    lead, seen, given = guide(asked, found), *blank(asked)
    levels = [*lead.plan([]), *(lead.propose(n, seen, given, lambda p: 1) for n in range(12))]
    known = [p for p in levels if p is not None]
    assert len(known) > 5
    assert {p[b] for p in known} <= {2, 3}
    assert {p[c] for p in known} <= {0, 1, 3}
    assert scale < 1 or {p[a] for p in known} >= {0, 1}


def blank(asked: Problem) -> tuple[dict[str, Observations], dict[str, NDArray[np.bool_]]]:
    groups = len(asked.space.groups)
    none = {target.name: Observations.none(groups) for target in asked.targets}
    return none, {name: np.zeros(0, dtype=bool) for name in none}


def measured(
    asked: Problem, points: list[tuple[int, ...]], truth: Callable[[tuple[int, ...]], float]
) -> tuple[dict[str, Observations], dict[str, NDArray[np.bool_]]]:
    """All targets see the same points, whose divergence is `truth`, to half a point."""
    divergences = np.array([truth(p) for p in points])
    rows = np.array(points, dtype=np.intp).reshape(-1, len(asked.space.groups))
    seen = Observations(rows, PRIOR_SLOPE * divergences, np.full(len(points), 0.5), divergences)
    return {t.name: seen for t in asked.targets}, {t.name: np.ones(len(points), dtype=bool) for t in asked.targets}


def true(levels: tuple[int, ...]) -> float:
    """The sum of the table's entries with the first group three times as sensitive as it seemed."""
    parts = [[LOSS[4], LOSS[8], LOSS[16], 0.0][level] for level in levels]
    return sum(f * part for f, part in zip((12.0, 1.0, 2.0), parts, strict=True))


def test_a_proposal_follows_from_its_inputs_alone() -> None:
    asked = problem("reference", "tpu-v4")
    rng = np.random.default_rng(0)
    points = [tuple(row) for row in rng.integers(0, 4, size=(40, 3)).tolist()]
    used, given = guide(asked), measured(asked, points, true)
    used.plan([])
    for count in (0, 5, 17, 39):
        used.propose(count, *measured(asked, points[:count], true), lambda p: 1)
    for number in (40, 41):
        proposed = [g.propose(number, *given, lambda p: p not in points) for g in (used, guide(asked))]
        assert proposed[0] == proposed[1]


def test_only_what_is_new_is_proposed_until_nothing_is() -> None:
    asked = problem("reference")
    points, numbers = [asked.space.uniform(8)], itertools.count(1)
    lead = guide(asked)
    while (found := lead.propose(next(numbers), *measured(asked, points, true), lambda p: p not in points)) is not None:
        assert found not in points
        points.append(found)
    truth = np.array([[*losses(asked, 0, [p], sensitivity(asked))[0, :2], PRIOR_SLOPE * true(p)] for p in every(asked)])
    own = truth[[every(asked).index(p) for p in points]]
    reference = reference_point(asked.targets[0], baseline_costs(asked)["reference"])
    # Although the table was wrong by three in one group.
    assert hypervolume(own, reference) >= 0.995 * hypervolume(truth, reference)
    assert len(points) < 40, "all that is known to be useless was asked too"


def test_of_two_candidates_the_one_that_needs_fewer_measurements_per_gain_is_asked() -> None:
    asked = problem("reference")
    seen = measured(asked, [asked.space.uniform(8)], true)
    best = guide(asked).propose(1, *seen, lambda p: 1)
    assert best is not None
    cheap = guide(asked).propose(1, *seen, lambda p: 1000 if p == best else 1)
    assert cheap not in (None, best)
    assert guide(asked).propose(1, *seen, lambda p: 7) == best


def test_with_several_targets_what_is_planned_is_on_some_targets_front() -> None:
    asked = problem("a100", "tpu-v4")
    found = sensitivity(asked)
    truths = [losses(asked, place, every(asked), found) for place in (0, 1)]
    planned = guide(asked).plan([])
    on = [
        [not is_beaten(losses(asked, place, [levels], found)[0], truths[place]) for place in (0, 1)]
        for levels in planned
    ]
    assert all(map(any, on))
    assert all(any(row[place] for row in on) for place in (0, 1))


def test_what_only_one_target_cannot_judge_is_still_planned_for_the_other() -> None:
    asked = problem("reference", "tpu-v4")
    whole = sensitivity(asked)
    kept = {p: e for p, e in whole.effects.items() if all(p.precision(n).activation.name != "bf16" for n in p)}
    # What the TPU executes is unknown unless something narrower was measured: int8 activations are.
    bounded = Sensitivity("kl", 64, kept, (), 64.0)
    alone = {p: e for p, e in whole.effects.items() if p not in kept}
    unknown = Sensitivity("kl", 64, alone, (), 64.0)
    assert guide(asked, bounded).plan([])
    only_tpu = guide(asked, unknown).plan([])
    truth = losses(asked, 1, every(asked), unknown)
    assert only_tpu
    assert not any(is_beaten(losses(asked, 1, [p], unknown)[0], truth) for p in only_tpu)
