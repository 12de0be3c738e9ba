"""A table of measured kernels as a correction of the model: the ratios it leaves, interpolated to kernels like them."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from haq.errors import InputError
from haq.hardware.figures import Strict

Floats = npt.NDArray[np.float64]
Group = tuple[str, str, str, str]

GROUP = ("op_class", "kind", "beside", "computes_in")
SIZES = ("rows", "columns", "depth", "products", "reuse", "elements")

REACH_OCTAVES = 6.0
"""The scale on which ratios change; several times as far from all that was measured the plain model is left."""

SPREAD = 0.5
"""How far the ratios scatter, as a deviation of their logarithm: a row whose noise comes near that counts for less."""

LEAST_NOISE = 0.01
"""No row is taken for better than 1 %."""


class Lookup(Strict):
    """The table beside a profile. table: its path, relative to the profile. sha256: of its content."""

    table: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Likeness:
    """What a kernel or a change of format is looked up by.

    group: in the order of GROUP: the class; of glue its kind and what it stands beside, of a layer whether its channels
    are `whole` blocks of the device or `ragged`; and the arithmetic, or the formats that it changes from and to.
    sizes: in the order of SIZES, for the whole batch, 1 where one does not apply. rows, columns, depth and products are
    those of a layer; reuse is how often it reads an input element, or how many elements glue reads per element written;
    elements are those that glue or a change of format touches.
    """

    group: Group
    sizes: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A measured kernel or change of format. case: the comparison that singled it out. noise: relative."""

    case: str
    likeness: Likeness
    measured_us: float
    modelled_us: float
    noise: float


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A group's rows, ready to be interpolated. points: (n, sizes) octaves; weights: (n,)."""

    points: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class Correction:
    """Measured over modelled time as a function of size, group by group; 1 for a group that was not measured.

    A Gaussian process over the logarithms of the sizes (simple kriging, mean 0, Matern 3/2 covariance): at a
    measured kernel it gives the measured ratio, between kernels it goes over from one to the other, and far from all
    of them it returns to 1, the plain model.
    """

    groups: Mapping[Group, _Fitted]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Correction:
        """The correction that the rows of a table make."""
        grouped: dict[Group, list[Row]] = {}
        for row in rows:
            grouped.setdefault(row.likeness.group, []).append(row)
        return cls({group: _fitted(members) for group, members in grouped.items()})

    def factor(self, likeness: Likeness) -> float:
        """What the modelled time is to be multiplied by."""
        fitted = self.groups.get(likeness.group)
        if fitted is None:
            return 1.0
        return math.exp(float(_covariance(np.log2([likeness.sizes]), fitted.points)[0] @ fitted.weights))


def _fitted(rows: list[Row]) -> _Fitted:
    points = np.log2([row.likeness.sizes for row in rows])
    ratios = np.log([row.measured_us / row.modelled_us for row in rows])
    noise = np.maximum([row.noise for row in rows], LEAST_NOISE)
    weights = np.linalg.solve(_covariance(points, points) + np.diag(noise**2), ratios)
    return _Fitted(points, np.asarray(weights, dtype=np.float64))


def _covariance(left: Floats, right: Floats) -> Floats:
    """Matern's with nu = 3/2 (Rasmussen and Williams 2006, eq. 4.17): smooth, and monotone in the distance."""
    distance = np.linalg.norm(left[:, None, :] - right[None, :, :], axis=-1) * math.sqrt(3) / REACH_OCTAVES
    return np.asarray(SPREAD**2 * (1 + distance) * np.exp(-distance))


COLUMNS = ("case", *GROUP, *SIZES, "measured_us", "modelled_us", "noise")


def table_text(rows: Iterable[Row]) -> str:
    """The rows as CSV, measured and modelled time with five significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        sizes = [f"{size:.6g}" for size in row.likeness.sizes]
        times = [f"{value:.5g}" for value in (row.measured_us, row.modelled_us, row.noise)]
        writer.writerow([row.case, *row.likeness.group, *sizes, *times])
    return text.getvalue()


def read_rows(text: str, where: str) -> tuple[Row, ...]:
    """The inverse of `table_text`; raises InputError naming `where` and the line."""
    found = []
    for number, record in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            group = (record["op_class"], record["kind"], record["beside"], record["computes_in"])
            sizes = tuple(float(record[name]) for name in SIZES)
            times = [float(record[name]) for name in ("measured_us", "modelled_us", "noise")]
            if min(*sizes, *times[:2]) <= 0:
                raise ValueError("sizes and times must be positive")
            found.append(Row(record["case"], Likeness(group, sizes), *times))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "no measured kernel", where=f"{where}, line {number}", got=str(error), expected=", ".join(COLUMNS)
            ) from None
    return tuple(found)


def read_correction(lookup: Lookup, profile_path: Path) -> Correction:
    """The table that a profile names; raises InputError where it is absent or not the one that was written with it."""
    path = profile_path.parent / lookup.table
    way_out = "bring the table that was written with the profile, or run haq measure again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            "the profile's table cannot be read", where=str(profile_path), got=f"{path}: {error.strerror}",
            expected="the CSV beside the profile", way_out=way_out,
        ) from None  # fmt: skip
    digest = hashlib.sha256(content).hexdigest()
    if digest != lookup.sha256:
        raise InputError(
            "the profile's table has changed", where=str(profile_path), got=f"{path} with sha256 {digest[:12]}...",
            expected=f"{lookup.sha256[:12]}...", way_out=way_out,
        )  # fmt: skip
    return Correction.of(read_rows(content.decode(), str(path)))
