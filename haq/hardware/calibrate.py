"""Fits a profile's free parameters to measured latencies, by robust regression with the priors that the profile states.

Everything else (schedule, tiles, residency, legality) stays as the profile says, so a row's work is worked out once;
the fit only turns rates. Latencies are compared as logarithms: ten percent too slow weighs the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from haq.errors import InputError
from haq.hardware.calibration import Free
from haq.hardware.cost import plan
from haq.hardware.figures import Figure
from haq.hardware.roofline import rate
from haq.hardware.schema import OP_CLASSES, HardwareProfile
from haq.hardware.work import FP32, Work, edge_work, kernel_work, own_converts
from haq.precision import Assignment
from haq.workload import Workload

Floats = npt.NDArray[np.float64]

NOISE_FLOOR = 0.02
"""Rows are never taken for better than 2 %: published times have two or three digits."""

ROUNDS = 4
"""How often the noise of the rows is estimated anew; it settles after two or three."""


@dataclass(frozen=True)
class Observation:
    """One measured latency. model: what is left out together; executed: a precision for every layer."""

    id: str
    model: str
    workload: Workload
    executed: Assignment
    batch: int
    latency_s: float


@dataclass(frozen=True)
class Estimated:
    """A fitted parameter. sd: of its logarithm, so that 0.1 means about 10 %."""

    free: Free
    value: float
    sd: float


@dataclass(frozen=True)
class FitResult:
    """parameters: in the order of the free ones. modelled_s: (rows,) the model's latency of each row."""

    parameters: tuple[Estimated, ...]
    observations: tuple[Observation, ...]
    modelled_s: Floats

    @property
    def errors(self) -> Floats:
        """(rows,) modelled over measured, less one."""
        measured = np.array([row.latency_s for row in self.observations])
        return np.asarray(self.modelled_s / measured - 1.0)

    @property
    def values(self) -> dict[str, float]:
        """Key of the profile -> fitted value, in the figure's unit."""
        return {key: p.value for p in self.parameters for key in p.free.keys}


def fit(profile: HardwareProfile, free: Sequence[Free], observations: Sequence[Observation]) -> FitResult:
    """The free parameters that explain the observations best, with the rest of the profile as it is.

    Minimizes soft-L1 of log(modelled / measured) over the rows' noise plus the squared distance of each logarithm from
    its prior. Raises InputError for a key that is no rate of the profile, or for no observation.
    """
    if not observations:
        raise InputError("nothing to fit to", where=profile.name, expected="at least one measured row")
    ledger = Ledger.of(profile, observations)
    scale = [_units(profile, parameter) for parameter in free]
    prior = np.log([parameter.prior for parameter in free])
    width = np.log([parameter.factor for parameter in free])
    low, high = _bounds(profile, free)
    measured = np.log([row.latency_s for row in observations])
    rows = len(observations)
    noise = 0.1

    def rates(theta: Floats) -> dict[str, float]:
        return {
            key: math.exp(value) * factor[key]
            for parameter, value, factor in zip(free, theta, scale, strict=True)
            for key in parameter.keys
        }

    def residuals(theta: Floats) -> Floats:
        modelled = np.log(ledger.seconds(rates(theta)))
        return np.concatenate([(modelled - measured) / noise, (theta - prior) / width])

    def loss(squared: Floats, /, *, cost_only: bool | None = None) -> Floats:
        """Soft L1 on the rows, plain squares on the priors: value and two derivatives (scipy's least_squares)."""
        root = np.sqrt(1 + squared)
        rho = np.stack([2 * (root - 1), 1 / root, -0.5 / root**3])
        rho[:, rows:] = np.stack([squared[rows:], np.ones(len(free)), np.zeros(len(free))])
        return rho

    theta = np.clip(prior, low, high)
    for _ in range(ROUNDS):
        found = least_squares(residuals, theta, bounds=(low, high), loss=loss, x_scale="jac")
        theta = found.x
        misfit = np.abs(found.fun[:rows] * noise)
        # Half of normal errors are under 0.6745 deviations: an estimate that a few bad rows cannot move.
        noise = max(NOISE_FLOOR, float(np.median(misfit)) / 0.6745)
    final = residuals(theta)
    jacobian = _jacobian(residuals, theta)
    weights = np.concatenate([1 / np.sqrt(1 + final[:rows] ** 2), np.ones(len(free))])
    covariance = np.linalg.inv(jacobian.T @ (weights[:, None] * jacobian))
    parameters = tuple(
        Estimated(parameter, math.exp(value), sd)
        for parameter, value, sd in zip(free, theta, np.sqrt(np.diag(covariance)), strict=True)
    )
    return FitResult(parameters, tuple(observations), ledger.seconds(rates(theta)))


def leave_one_model_out(
    profile: HardwareProfile, free: Sequence[Free], observations: Sequence[Observation]
) -> dict[str, float]:
    """Row id -> latency in seconds, predicted by a fit that saw no row of the same model.

    With a single model there is nothing to hold out, and the result is empty.
    """
    models = dict.fromkeys(row.model for row in observations)
    predicted: dict[str, float] = {}
    for model in models if len(models) > 1 else ():
        seen = [row for row in observations if row.model != model]
        held = [row for row in observations if row.model == model]
        predicted |= predict(profile, fit(profile, free, seen), held)
    return {row.id: predicted[row.id] for row in observations if row.id in predicted}


def predict(profile: HardwareProfile, fitted: FitResult, observations: Sequence[Observation]) -> dict[str, float]:
    """Row id -> latency in seconds with the fitted parameters."""
    factors = [_units(profile, p.free) for p in fitted.parameters]
    rates = {key: p.value * f[key] for p, f in zip(fitted.parameters, factors, strict=True) for key in p.free.keys}
    seconds = Ledger.of(profile, observations).seconds(rates)
    return dict(zip((row.id for row in observations), seconds.tolist(), strict=True))


@dataclass(frozen=True)
class Ledger:
    """The work of all rows as columns: one entry per kernel or conversion, `row` says whose."""

    profile: HardwareProfile
    row: npt.NDArray[np.intp]
    rows: int
    works: tuple[Work, ...]

    @classmethod
    def of(cls, profile: HardwareProfile, observations: Sequence[Observation]) -> Ledger:
        """The work of every observation on this profile."""
        listed = [list(_works(profile, observation)) for observation in observations]
        row = np.repeat(np.arange(len(listed)), [len(works) for works in listed])
        return cls(profile, row, len(listed), tuple(work for works in listed for work in works))

    @cached_property
    def _columns(self) -> Floats:
        """(7, entries): operations, finished elements, off-chip, on-chip and score bytes, launches, float inputs."""
        table = [
            (w.operations, w.finished, w.dram_bytes, w.on_chip_bytes, w.score_bytes, w.launches, w.float_inputs)
            for w in self.works
        ]
        return np.array(table, dtype=np.float64).reshape(-1, 7).T

    @cached_property
    def _class(self) -> npt.NDArray[np.intp]:
        return np.array([OP_CLASSES.index(work.op_class) for work in self.works], dtype=np.intp)

    @cached_property
    def _arithmetic(self) -> npt.NDArray[np.intp]:
        names = list(self.profile.arithmetic)
        return np.array([names.index(w.arithmetic) if w.arithmetic else 0 for w in self.works], dtype=np.intp)

    def seconds(self, changed: Mapping[str, float]) -> Floats:
        """(rows,) latencies, with some of the profile's rates replaced (key -> SI value)."""
        profile, (operations, finished, dram, on_chip, scores, launches, inputs) = self.profile, self._columns
        figures = dict(profile.figures())

        def value(key: str, absent: float = math.inf) -> float:
            figure = figures.get(key)
            return changed.get(key, figure.si if figure is not None and figure.is_known else absent)

        peaks = [value(f"arithmetic.{name}.peak") * rate(row) / row.peak.si for name, row in profile.arithmetic.items()]
        shares = np.array([value(f"efficiency.{name}", 1.0) for name in OP_CLASSES])
        fixed = np.array([value(f"overhead.kernel.{name}") for name in OP_CLASSES])
        compute = operations / (np.array(peaks)[self._arithmetic] * shares[self._class]) + finished / value(
            "vector.rate"
        )
        memory = (
            dram / (value("memory.bandwidth") * value("memory.efficiency"))
            + on_chip / value("on_chip.bandwidth")
            + scores / value("attention.bandwidth")
        )
        exposed = (1.0 - value("memory.overlap", 1.0)) * np.minimum(compute, memory)
        spent = np.maximum(compute, memory) + exposed + launches * fixed[self._class]
        spent += inputs * value("overhead.float_input", 0.0)
        return np.asarray(np.bincount(self.row, spent, minlength=self.rows) + value("overhead.inference"))


def _works(profile: HardwareProfile, observation: Observation) -> Iterable[Work]:
    """Everything that the row's latency is made of, but for the fixed time per inference."""
    kernels, setting = plan(observation.workload, profile, observation.batch)
    precisions = [observation.executed.precision(k.anchor) if k.anchor else FP32 for k in kernels]
    for kernel, precision in zip(kernels, precisions, strict=True):
        yield kernel_work(kernel, precision, setting)
        yield from own_converts(kernel, precision, setting)
        for read in kernel.reads:
            if read.source is not None:
                yield from edge_work(read, (precisions[read.source].activation, precision.activation), setting)


RATES = (
    "arithmetic.", "efficiency.", "memory.bandwidth", "memory.efficiency", "memory.overlap", "on_chip.bandwidth",
    "vector.rate", "attention.bandwidth", "overhead.",
)  # fmt: skip
"""What may be free: rates and fixed times. Capacities and tiles shape the work itself."""


def _figure(profile: HardwareProfile, key: str) -> Figure:
    figures = dict(profile.figures())
    if not key.startswith(RATES) or key not in figures:
        known = [name for name in figures if name.startswith(RATES)]
        raise InputError("no rate of the profile", where=profile.name, got=key, expected=f"one of {', '.join(known)}")
    return figures[key]


def _units(profile: HardwareProfile, free: Free) -> dict[str, float]:
    """Key -> factor from the figure's unit to SI."""
    return {key: _figure(profile, key).factor for key in free.keys}


def _bounds(profile: HardwareProfile, free: Sequence[Free]) -> tuple[Floats, Floats]:
    """Logarithms of the least and largest value: within 30 deviations of the prior, and shares of a peak within 1."""
    prior = np.log([parameter.prior for parameter in free])
    reach = np.log([max(parameter.factor, 1.2) for parameter in free]) * 6
    top = [0.0 if _figure(profile, p.keys[0]).unit == "fraction" else math.inf for p in free]
    return np.asarray(prior - reach), np.asarray(np.minimum(prior + reach, np.array(top) + 1e-9))


def _jacobian(residuals: Callable[[Floats], Floats], theta: Floats) -> Floats:
    step = 1e-5
    columns = []
    for index in range(len(theta)):
        shift = np.zeros_like(theta)
        shift[index] = step
        columns.append((residuals(theta + shift) - residuals(theta - shift)) / (2 * step))
    return np.stack(columns, axis=1)
