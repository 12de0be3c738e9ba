"""Makes tables and a picture of what the detection runs found: the confusion matrix, and rates with their intervals.

    python experiments/diagnose/confusion.py

Reads results/detection_<space>.csv and writes, beside them:

confusion.csv, confusion.png. A row per mode planted alone, and per healthy version; all networks together. Columns
count cases: found with the right mode and layer (the diagonal), with another mode, with the right mode elsewhere, and
nothing at all. A case in which several modes were found counts once in each. Cells are empty where no detector of the
mode looked: those of cost look at cases of cost alone, those of accuracy at all others.
rates.csv. A row per question, mode and network, with Wilson's 95 % interval. `detected`: measurable cases of the mode
with the right mode and layer among the findings. `both found`: the same of pairs, of which each fault is measurable
alone. `false finding of the mode`: of the cases that its detector looked at, healthy and measurable ones of other modes
in which the mode was found. `any false finding`: cases with one, of healthy ones and of measurable single faults. What
is not measurable or not plantable is left out of `counted`; cases that have no row yet are in no column.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from cases import HEALTHY, SPACES
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from haq.accuracy import mean_interval
from haq.diagnose.strengths import ACCURACY_MODES, COST_MODES

RESULTS = Path(__file__).resolve().parent / "results"
MODES = (*ACCURACY_MODES, *COST_MODES)
ELSEWHERE, NOTHING = "right mode, other layer", "nothing"
FOUND = (*MODES, ELSEWHERE, NOTHING)
ALL = "all"
ASKED = {
    "detected": ">= 95 %",
    "both found": ">= 90 %",
    "false finding of the mode": "<= 5 %",
    "any false finding": "<= 5 %",
}
RATES = (
    "question", "mode", "network", "cases", "not_plantable", "not_measurable", "counted", "hits", "rate", "low", "high",
    "asked",
)  # fmt: skip
Row = Mapping[str, str]


def main() -> None:
    rows = read(RESULTS)
    matrix = confusion(rows)
    counts = [{"planted": planted, "cases": len(cases), **matrix[planted]} for planted, cases in planted_in(rows)]
    write(RESULTS / "confusion.csv", ("planted", "cases", *FOUND), counts)
    write(RESULTS / "rates.csv", RATES, rates(rows))
    draw(counts, RESULTS / "confusion.png")


def read(folder: Path) -> list[Row]:
    """The rows of all networks that have any."""
    files = [folder / f"detection_{space}.csv" for space in SPACES]
    return [row for file in files if file.is_file() for row in table(file)]


def table(file: Path) -> list[Row]:
    """The rows of a CSV file with a header."""
    return list(csv.DictReader(file.read_text().splitlines()))


def planted_in(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """What was planted -> the cases that count: healthy versions, and modes planted alone that do measurable harm."""
    for base in HEALTHY:
        yield f"healthy {base}", [row for row in rows if is_healthy(row) and row["base"] == base]
    for mode in MODES:
        yield mode, [row for row in rows if row["modes"] == mode and is_measurable(row)]


def confusion(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """What was planted -> what was found -> in how many cases; what nothing looked for is absent."""
    return {
        planted: {what: sum(what in found_in(row) for row in cases) for what in FOUND if is_looked_for(what, planted)}
        for planted, cases in planted_in(rows)
    }


def is_looked_for(what: str, planted: str) -> bool:
    """Whether a detector of the mode `what` looks at such cases; what is no mode can come of any."""
    return what not in MODES or (what in COST_MODES) == (planted in COST_MODES)


def found_in(row: Row) -> frozenset[str]:
    """What a case of one fault, or of none, counts as. Its own mode stands for mode and layer together."""
    mode, wrong = row["modes"], set(row["false_modes"].split())
    found = wrong - {mode}
    if mode and row["right"] == "True":
        found.add(mode)
    named = {part.split("@")[0] for part in row["found"].split("; ") if part}
    if mode in wrong or (mode in named and row["right"] != "True"):
        found.add(ELSEWHERE)
    return frozenset(found) or frozenset({NOTHING})


def is_healthy(row: Row) -> bool:
    return not row["modes"]


def is_measurable(row: Row) -> bool:
    return row["measurable"] == "True"


def is_pair(row: Row) -> bool:
    return " + " in row["modes"]


def is_plantable(row: Row) -> bool:
    """Faults that cannot be planted have their reason as a note; those of cost have one always."""
    return bool(row["harm_nats"] or row["target"])


def space_of(row: Row) -> str:
    return row["case"].split("/")[0]


def rates(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """The rows of rates.csv: each question over all networks first, then network by network."""
    networks = (ALL, *dict.fromkeys(map(space_of, rows)))
    for mode in (*MODES, ALL):
        for network in networks:
            yield detected([row for row in rows if network in (ALL, space_of(row))], mode, network)
    for network in networks:
        yield both_found([row for row in rows if network in (ALL, space_of(row))], network)
    for mode in (*MODES, ALL):
        for network in networks:
            yield false_findings([row for row in rows if network in (ALL, space_of(row))], mode, network)


def detected(rows: Sequence[Row], mode: str, network: str) -> dict[str, object]:
    cases = [row for row in rows if row["modes"] in ((mode,) if mode != ALL else MODES)]
    hits = [row["right"] == "True" for row in cases if is_measurable(row)]
    return rate("detected", mode, network, cases, hits)


def both_found(rows: Sequence[Row], network: str) -> dict[str, object]:
    """Of pairs whose faults are each measurable alone; a pair that as a whole was not, is one that was not found."""
    single = {key: row for row in rows for key in faults(row) if not is_pair(row)}
    cases = [row for row in rows if is_pair(row)]
    counted = [row for row in cases if is_plantable(row) and all(measurable(single.get(key)) for key in faults(row))]
    return rate("both found", ALL, network, cases, [row["right"] == "True" for row in counted])


def measurable(row: Row | None) -> bool:
    return row is not None and is_measurable(row)


def faults(row: Row) -> tuple[tuple[str, str, str, str], ...]:
    """What identifies each fault of accuracy of a case: network, mode, layer and strength."""
    if row["target"] or is_healthy(row):
        return ()
    parts = (row[key].split(" + ") for key in ("modes", "layers", "strengths"))
    return tuple((space_of(row), *fault) for fault in zip(*parts, strict=True))


def false_findings(rows: Sequence[Row], mode: str, network: str) -> dict[str, object]:
    """Of one mode, or of any: then a right mode at another layer is false, too."""
    single = [row for row in rows if not is_pair(row) and row["modes"] != mode]
    cases = [row for row in single if mode == ALL or is_looked_for(mode, row["modes"])]
    counted = [row for row in cases if is_healthy(row) or is_measurable(row)]
    if mode == ALL:
        hits = [bool(found_in(row) - {row["modes"], NOTHING}) for row in counted]
        return rate("any false finding", mode, network, cases, hits)
    return rate("false finding of the mode", mode, network, cases, [mode in found_in(row) for row in counted])


def rate(question: str, mode: str, network: str, cases: Sequence[Row], hits: Sequence[bool]) -> dict[str, object]:
    not_plantable = sum(not is_plantable(row) for row in cases)
    counts = {
        "question": question, "mode": mode, "network": network, "cases": len(cases), "not_plantable": not_plantable,
        "not_measurable": len(cases) - not_plantable - len(hits), "counted": len(hits), "hits": sum(hits),
    }  # fmt: skip
    if not hits:  # nothing was measured, and unknown is not zero
        return {**counts, "asked": ASKED[question]}
    interval = mean_interval(np.array(hits, dtype=float))
    shares = {"rate": sum(hits) / len(hits), "low": interval.low, "high": interval.high}
    return {**counts, **{key: f"{abs(value):.4f}" for key, value in shares.items()}, "asked": ASKED[question]}


def write(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def right_answer(planted: str) -> str:
    return NOTHING if planted.startswith("healthy") else planted


def draw(counts: Sequence[Mapping[str, object]], file: Path) -> None:
    """A heat map of the counts; shades are shares of a row's cases, green where they belong and red where not."""
    figure = Figure(figsize=(11.5, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = np.array([[int(str(row.get(f, 0))) / max(int(str(row["cases"])), 1) for f in FOUND] for row in counts])
    belongs = np.array([[f == right_answer(str(row["planted"])) for f in FOUND] for row in counts])
    shades = LinearSegmentedColormap.from_list("", ["#b3261e", "#ffffff", "#2c7a4b"])
    axes.imshow(np.where(belongs, shares, -shares), cmap=shades, vmin=-1, vmax=1, aspect="auto")
    for y, row in enumerate(counts):
        for x, found in enumerate(FOUND):
            if found not in row:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color="#f0f1f3"))
            elif row[found] or belongs[y, x]:
                colour = "white" if shares[y, x] > 0.6 else "#222222"
                axes.text(x, y, str(row[found]), ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks(range(len(FOUND)), FOUND, rotation=40, ha="left")
    axes.set_yticks(range(len(counts)), [f"{row['planted']}  (n = {row['cases']})" for row in counts])
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(0.5, len(FOUND) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(counts) - 1), minor=True)
    axes.grid(which="minor", color="#e6e8eb", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(len(MODES) - 0.5, color="#222222", linewidth=1)
    axes.axhline(len(HEALTHY) - 0.5, color="#222222", linewidth=1)
    axes.set_xlabel("found, number of cases; green: as it should be, red: not, grey: not looked for")
    axes.set_ylabel("planted, with measurable harm")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
