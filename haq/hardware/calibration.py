"""What a profile says about its own fit: which parameters are free, and the rows and residuals they were fitted to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from haq.hardware.figures import Strict

Residual = tuple[str, float, float]
"""A row of measurements: its id, measured and modelled latency in milliseconds."""


class Free(Strict):
    """One free parameter: the figures at `keys` share its value.

    prior: in the figures' own unit, what is expected before any row is seen. factor: one standard deviation of that
    expectation as a ratio; 1.5 says that about two in three such devices lie within prior / 1.5 and prior x 1.5.
    """

    keys: tuple[str, ...] = Field(min_length=1)
    prior: float = Field(gt=0)
    factor: float = Field(gt=1, le=100)
    source: str = Field(min_length=8)


class Fit(Strict):
    """One fit to the rows of one runtime. option: of the profile whose figures it sets; absent for the profile itself.

    rows, models, error, residuals and measurements are written by `haq calibrate`: ids of the rows used, the spaces
    they time, the mean absolute relative error over them, each row's residual, and the sha256 of the file.
    """

    runtime: str = Field(min_length=1)
    option: str = ""
    free: tuple[Free, ...] = Field(min_length=1)
    measurements: str = ""
    error: Annotated[float, Field(ge=0)] | None = None
    residuals: tuple[Residual, ...] = ()
