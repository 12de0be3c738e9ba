"""One run's growing state: candidates, shared measurements, the targets' studies; the history is written first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from haq.accuracy import Failure, Measurement, Reading, Scores, judged
from haq.candidate import Candidate, TargetResult
from haq.constraints import LIMIT_OF, ON_MEASUREMENTS, called
from haq.engine.convergence import PATIENCE, has_converged
from haq.engine.lessons import lesson
from haq.engine.pace import Left, left_s
from haq.engine.problem import Problem, SearchOptions, Target, figures, price, reference_point, sentences, unquantized
from haq.engine.proposals import Levels, Proposal
from haq.engine.proposer import Proposer
from haq.engine.race import Bars, Rivals, bars_of
from haq.engine.seeds import Seed
from haq.engine.study import Lesson
from haq.errors import InputError
from haq.front import GrowingFront, Point, measured_points
from haq.history import SEARCH, VALIDATION, Baseline, History
from haq.precision import Assignment
from haq.quality import MainMetric, QualityReport, main_metric
from haq.racing import Watch
from haq.rundir import OpenRun

Costs = Mapping[str, Mapping[str, float]]
"""Target -> figures."""


class Session:
    """What a search knows. It changes with every candidate; all of it can be rebuilt from the history.

    measured: executed signature -> measurement. failed: the same for measurements without a result.
    """

    def __init__(
        self, problem: Problem, options: SearchOptions, opened: OpenRun, base: Costs, seeds: Iterable[Seed]
    ) -> None:
        """Measure FP32 unless the history has it, and learn what the history holds. base: costs of FP32."""
        history = opened.run.history
        self.problem, self.options, self._writer, self._base = problem, options, opened.writer, base
        self.sensitivity_forwards = history.sensitivity_forwards
        self._durations_s = {kind: list(found) for kind, found in history.durations_s.items()}
        self._fp32_s = sum(self._durations_s.get("baseline", ())) / len(problem.splits)
        self.baseline = history.baseline if history.baseline is not None else self._measure_baseline()
        self._check_limits_are_known()
        self._seeds = tuple(seeds)
        self.validations = dict(history.validations or {})
        self.unvalidable = dict(history.unvalidated)
        self.failed: dict[str, Failure] = {}
        self.measured: dict[str, Measurement] = {self.baseline.signature: self.baseline.measurements[SEARCH]}
        self.candidates: list[Candidate] = []
        self.lessons: dict[str, list[Lesson]] = {target.name: [] for target in problem.targets}
        self._measuring: list[int] = []
        self._seen: set[tuple[str, ...]] = set()
        self._fronts = {target.name: GrowingFront(target.name) for target in problem.targets}
        self._rivals = tuple(Rivals(target) for target in problem.targets)
        self.proposer = Proposer(problem, options, self._seeds)
        for candidate in history.candidates:
            self.proposer.replay(candidate)
            self._take(candidate)

    @property
    def history(self) -> History:
        """As `read_history` would find it now."""
        return History(
            self.baseline, tuple(self.candidates), self.validations, self._durations_s, self.unvalidable,
            self.sensitivity_forwards,
        )  # fmt: skip

    @property
    def done(self) -> int:
        """Candidates for which something new was measured, with a result or without."""
        return len(self._measuring)

    @property
    def metric(self) -> MainMetric:
        """What drives the search."""
        measured = self.baseline.measurements[SEARCH]
        name = measured.metric or self.problem.provenance.get("metric", "accuracy")
        return main_metric(name, self.problem.direction, measured.accuracy)

    def propose(self) -> Proposal | None:
        """The next thing to evaluate; None when the space holds nothing new."""
        return self.proposer.propose(len(self.candidates), self._needed)

    def evaluate(self, proposal: Proposal) -> Candidate:
        """Price the proposal on every target, measure what is neither infeasible nor known, record and learn.

        A measurement is stopped early once it is of no use on any target. One that was stopped before is made again
        where a target that was not asked then could use it.
        """
        requested = self.problem.space.assignment(proposal.levels)
        priced = [price(t, requested, self._base[t.name]) for t in self.problem.targets]
        spent_s = 0.0
        fresh: dict[str, Measurement | Failure] = {**self.failed, **self.measured}
        bars = bars_of(self._rivals, priced)
        for result in priced:
            signature = result.executed.signature
            if result.is_feasible and bars.are_open(signature, fresh.get(signature)):
                stop = bars.watch(signature, self.baseline.scores[SEARCH], self.problem.direction)
                started = time.perf_counter()
                fresh[signature] = self.measure(result.executed, SEARCH, stop)
                spent_s += time.perf_counter() - started
        results = tuple(
            self._judge(target, result, fresh.get(result.executed.signature), bars)
            for target, result in zip(self.problem.targets, priced, strict=True)
        )
        candidate = Candidate(len(self.candidates), proposal.origin, requested, results)
        self._record("candidate", candidate.to_json(), spent_s)
        self._take(candidate)
        return candidate

    def validate(self, executed: Assignment) -> Failure | None:
        """Measure executed formats on the validation split, once; returns why that gave no result, if it did not."""
        started = time.perf_counter()
        found = self.measure(executed, VALIDATION)
        spent_s = time.perf_counter() - started
        failure = found if isinstance(found, Failure) else None
        result = {"failure": asdict(failure)} if failure else {"measurement": found.to_json()}  # type: ignore[union-attr]
        self._record("validation", {"signature": executed.signature, **result}, spent_s)
        if isinstance(found, Failure):
            self.unvalidable[executed.signature] = found
        else:
            self.validations[executed.signature] = found
        return failure

    def measure(self, executed: Assignment, split: str, stop: Watch | None = None) -> Measurement | Failure:
        """The measurement against FP32; raises InputError when the user's function returns nonsense.

        stop: ends a race on the search split.
        """
        reading = self.problem.reading(executed, split, stop)
        if isinstance(reading, Failure):
            return reading
        fp32 = self.baseline.measurements[split]
        return self._measurement(self.baseline.scores[split], reading, split, fp32.quality)

    def unvalidated(self) -> dict[str, Assignment]:
        """Executed signature -> formats, for members of the targets' fronts that the held-out split has not seen."""
        if VALIDATION not in self.problem.splits:
            return {}
        members = {
            point.result.executed.signature: point.result.executed
            for known in self._fronts.values()
            for point in known.points
        }
        history = self.history
        return {
            sig: executed
            for sig, executed in members.items()
            if history.validation(sig) is None and sig not in self.unvalidable
        }

    def left_s(self) -> float:
        """Estimated seconds to the end: the candidates' measurements and the front's validation."""
        candidates = max(0, self.options.trials - self.done)
        left = Left(candidates, len(self.unvalidated()), self._signatures_per_seed())
        return left_s(left, self._fp32_s, self._durations_s)

    def best(self) -> dict[str, Point]:
        """Target -> its smallest feasible point, within 1 point of FP32 where no largest drop is set."""
        found = {}
        for target in self.problem.targets:
            limit = target.constraints.max_drop_points
            bound = 1.0 if limit is None else limit
            points = self._fronts[target.name].points
            if (first := next((point for point in points if point.losses[2] <= bound), None)) is not None:
                found[target.name] = first
        return found

    def has_converged(self) -> bool:
        """Whether the latest measurements brought no target's hypervolume a gain beyond the noise."""
        if self.done <= PATIENCE:
            return False
        targets, recent = self.problem.targets, self._measuring[-PATIENCE]
        points = [[p for p in measured_points(self.candidates, t.name) if p.result.is_feasible] for t in targets]
        counts = [sum(p.candidate.number < recent for p in found) for found in points]
        return has_converged(points, counts, [reference_point(t, self._base[t.name]) for t in targets])

    def count_sensitivities(self, sample_forwards: float, spent_s: float) -> None:
        """Put what measuring sensitivities cost on record."""
        self._record("sensitivity", {"sample_forwards": sample_forwards}, spent_s)
        self.sensitivity_forwards = sample_forwards

    def _record(self, kind: str, record: Mapping[str, Any], spent_s: float) -> None:
        """Write what was measured to the history, and remember how long it took."""
        self._writer.append(kind, record, measure_s=spent_s)
        self._durations_s.setdefault(kind, []).append(spent_s)

    def _measure_baseline(self) -> Baseline:
        executed = unquantized(self.problem.workload)
        readings, spent_s = {}, {}
        for split in self.problem.splits:
            started = time.perf_counter()
            readings[split] = self.problem.reading(executed, split)
            spent_s[split] = time.perf_counter() - started
        scores, measurements = {}, {}
        for split, reading in readings.items():
            if isinstance(reading, Failure):
                raise InputError(
                    f"the FP32 model cannot be measured: {reading.reason}", where=f"split {split!r}",
                    expected="finite outputs", way_out="check the model and its data",
                )  # fmt: skip
            scores[split] = reading.scores
            measurements[split] = self._measurement(reading.scores, reading, split, None)
        baseline = Baseline(executed.signature, scores, measurements, self._base)
        # The first split's time holds what is done once, such as calibration; the quickest is nearest to the rest.
        quickest_s = min(spent_s[split] / measurement.samples for split, measurement in measurements.items())
        self._fp32_s = quickest_s * measurements[SEARCH].samples
        self._record("baseline", baseline.to_json(), sum(spent_s.values()))
        return baseline

    def _measurement(
        self, fp32: Scores | float, reading: Reading, split: str, quality: QualityReport | None
    ) -> Measurement:
        """The reading against FP32's scores and report."""
        report = None if reading.report is None else reading.report.against(quality)
        return replace(judged(fp32, reading, split, self.problem.direction), quality=report)

    def _check_limits_are_known(self) -> None:
        """Raise InputError where a limit is on a figure that the task does not measure."""
        known = self.baseline.measurements[SEARCH].figures()
        for target in self.problem.targets:
            for limit in target.constraints.set_limits():
                if limit in ON_MEASUREMENTS and LIMIT_OF[limit] not in known:
                    raise InputError(
                        f"the {called(LIMIT_OF[limit])} is limited, but unknown for this task", where=limit,
                        expected="a classifier's logits, finite ones, and class numbers as labels",
                        way_out="leave the limit out",
                    )  # fmt: skip

    def _judge(
        self, target: Target, priced: TargetResult, measurement: Measurement | Failure | None, bars: Bars
    ) -> TargetResult:
        if measurement is None:
            return priced
        if isinstance(measurement, Failure):
            return replace(priced, violations=(*priced.violations, measurement.reason), failure=measurement)
        if measurement.is_partial:
            return bars.stopped(priced, measurement)
        known = {**figures(priced.costs, self._base[target.name]), **measurement.figures()}
        violations = sentences(target.constraints.judge(known))
        return TargetResult(target.name, priced.executed, priced.fallbacks, priced.costs, measurement, violations)

    def _take(self, candidate: Candidate) -> None:
        """Count a recorded candidate and let every target's study learn from it."""
        new = {r.executed.signature: r.measurement for r in candidate.results if r.measurement is not None}
        failed = {r.executed.signature: r.failure for r in candidate.results if r.failure is not None}
        if (new.keys() | failed.keys()) - self.measured.keys() - self.failed.keys():
            self._measuring.append(candidate.number)
        self.measured |= new
        self.failed |= failed
        self._seen.add(tuple(r.executed.signature for r in candidate.results))
        self.candidates.append(candidate)
        for known, rivals in zip(self._fronts.values(), self._rivals, strict=True):
            known.add(candidate)
            rivals.add(candidate)
        lessons = {
            target.name: lesson(self.problem, target, self._base[target.name], candidate, self.lessons[target.name])
            for target in self.problem.targets
        }
        for name, learned in lessons.items():
            self.lessons[name].append(learned)
        self.proposer.learn(candidate, self.problem.space.levels(candidate.requested), lessons)

    def _needed(self, levels: Levels) -> int:
        """How many measurements the levels need; 0 when they execute like an earlier candidate on every target."""
        requested = self.problem.space.assignment(levels)
        signatures = tuple(t.legalize(requested)[0].signature for t in self.problem.targets)
        known = self.measured.keys() | self.failed.keys()
        return 0 if signatures in self._seen else max(1, len(set(signatures) - known))

    def _signatures_per_seed(self) -> float:
        """How many different executions one request means over the targets, on average over the seeds."""
        seeds = [self.problem.space.assignment(seed.levels) for seed in self._seeds]
        counts = [len({t.legalize(a)[0].signature for t in self.problem.targets}) for a in seeds]
        return statistics.fmean(counts) if counts else float(len(self.problem.targets))
