"""Fits a profile's free parameters to measured latencies, by robust regression with the priors that the profile states.

Everything else (schedule, tiles, residency, legality) stays as the profile says, so a row's work is worked out once;
the fit only turns rates. Latencies are compared as logarithms: ten percent too slow weighs the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from haq.errors import InputError
from haq.hardware.calibration import Free, Residual
from haq.hardware.figures import rounded
from haq.hardware.ledger import Floats, Ledger, Observation, rate_figure
from haq.hardware.schema import HardwareProfile

NOISE_FLOOR = 0.02
"""Rows are never taken for better than 2 %: published times have two or three digits."""

UNKNOWN_NOISE = 0.1
"""The noise of rows that are hardly more than the parameters, whose misfit therefore says nothing about it."""

SPARE_ROWS = 4
"""How many rows more than parameters it takes to see the noise."""

INSIDE = 1e-6
"""scipy starts strictly inside the bounds, and a share of a peak may be expected to be all of it."""

ROUNDS = 4
"""How often the noise of the rows is estimated anew; it settles after two or three."""


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
    def residuals(self) -> tuple[Residual, ...]:
        """Each row's id, measured and modelled latency in milliseconds, as a profile keeps them."""
        pairs = zip(self.observations, self.modelled_s.tolist(), strict=True)
        return tuple((row.id, rounded(1e3 * row.latency_s), rounded(1e3 * seconds)) for row, seconds in pairs)

    @property
    def values(self) -> dict[str, float]:
        """Key of the profile -> fitted value, in the figure's unit."""
        return {key: p.value for p in self.parameters for key in p.free.keys}


def fit(free: Sequence[Free], observations: Sequence[Observation]) -> FitResult:
    """The free parameters that explain the observations best, with the rest of their profiles as it is.

    Minimizes soft-L1 of log(modelled / measured) over the rows' noise plus the squared distance of each logarithm from
    its prior. Raises InputError for a key that is no rate of a profile, or for no observation.
    """
    if not observations:
        raise InputError("nothing to fit to", expected="at least one measured row")
    ledger = Ledger.of(observations)
    factors = _factors(free, observations)
    prior = np.log([parameter.prior for parameter in free])
    width = np.log([parameter.factor for parameter in free])
    low, high = _bounds(free, observations[0].profile)
    measured = np.log([row.latency_s for row in observations])
    rows, noise = len(observations), UNKNOWN_NOISE
    floor = NOISE_FLOOR if rows >= len(free) + SPARE_ROWS else UNKNOWN_NOISE

    def rates(theta: Floats) -> dict[str, float]:
        values = np.exp(theta).tolist()
        return {key: value * factors[key] for p, value in zip(free, values, strict=True) for key in p.keys}

    def residuals(theta: Floats) -> Floats:
        modelled = np.log(ledger.seconds(rates(theta)))
        return np.concatenate([(modelled - measured) / noise, (theta - prior) / width])

    def loss(squared: Floats, /, *, cost_only: bool | None = None) -> Floats:
        """Soft L1 on the rows, plain squares on the priors: value and two derivatives (scipy's least_squares)."""
        root = np.sqrt(1 + squared)
        rho = np.stack([2 * (root - 1), 1 / root, -0.5 / root**3])
        rho[:, rows:] = np.stack([squared[rows:], np.ones(len(free)), np.zeros(len(free))])
        return rho

    theta = np.clip(prior, low + INSIDE, high - INSIDE)
    for _ in range(ROUNDS):
        found = least_squares(residuals, theta, bounds=(low, high), loss=loss, x_scale="jac")
        theta = found.x
        misfit = np.abs(found.fun[:rows] * noise)
        # Half of normal errors are under 0.6745 deviations: an estimate that a few bad rows cannot move.
        noise = max(floor, float(np.median(misfit)) / 0.6745)
    sd = _deviations(residuals, theta, rows)
    values = np.exp(theta).tolist()
    parameters = tuple(Estimated(p, value, each) for p, value, each in zip(free, values, sd, strict=True))
    return FitResult(parameters, tuple(observations), ledger.seconds(rates(theta)))


def predict(values: Mapping[str, float], observations: Sequence[Observation]) -> dict[str, float]:
    """Row id -> modelled latency in seconds. values: key of the profile -> value, in the figure's unit."""
    rates = {key: value * rate_figure(observations[0].profile, key).factor for key, value in values.items()}
    seconds = Ledger.of(observations).seconds(rates)
    return dict(zip((row.id for row in observations), seconds.tolist(), strict=True))


def _factors(free: Sequence[Free], observations: Sequence[Observation]) -> dict[str, float]:
    """Free key -> factor from its unit to SI; every profile must have it."""
    profiles = {id(row.profile): row.profile for row in observations}.values()
    return {key: rate_figure(profile, key).factor for profile in profiles for p in free for key in p.keys}


def _bounds(free: Sequence[Free], profile: HardwareProfile) -> tuple[Floats, Floats]:
    """Logarithms of the least and largest value: six deviations from the prior, and shares of a peak at most 1."""
    prior = np.log([parameter.prior for parameter in free])
    reach = 6 * np.log([max(parameter.factor, 1.2) for parameter in free])
    top = np.array([0.0 if rate_figure(profile, p.keys[0]).unit == "fraction" else math.inf for p in free])
    return np.asarray(prior - reach), np.asarray(np.minimum(prior + reach, top))


def _deviations(residuals: Callable[[Floats], Floats], theta: Floats, rows: int) -> list[float]:
    """One standard deviation of each parameter: the curvature of the loss at its minimum, rows and priors alike."""
    step, final = 1e-5, residuals(theta)
    columns = []
    for index in range(len(theta)):
        shift = np.zeros_like(theta)
        shift[index] = step
        columns.append((residuals(theta + shift) - residuals(theta - shift)) / (2 * step))
    jacobian = np.stack(columns, axis=1)
    weights = np.concatenate([1 / np.sqrt(1 + final[:rows] ** 2), np.ones(len(theta))])
    covariance = np.linalg.inv(jacobian.T @ (weights[:, None] * jacobian))
    return np.sqrt(np.diag(covariance)).tolist()  # type: ignore[no-any-return]
