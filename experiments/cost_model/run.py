"""Fits part of the published latencies, predicts the rest, and writes what came of it: tables, orderings, pictures.

    python experiments/cost_model/run.py

Four questions per target. `fit`: how well do the committed profiles describe the rows they were fitted to?
`alternate batches`: fitted to every second batch size, judged on the others (interpolation). `unseen model`: each
network predicted by a fit that saw no row of it (on the A100 that is one family from the other). The naive predictors
see the same rows. Priors and structure of the model were chosen with all these rows in view; only the fits are blind.
`held out`: the committed profiles on `held_out.csv`, further published rows that were looked up after the model and the
fits were finished; nothing was chosen on them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from baselines import BASELINES, Point  # noqa: E402
from orderings import layer_orderings, orderings  # noqa: E402
from pictures import scatter  # noqa: E402

from haq.fitting import errors_of, fitted, leave_one_model_out, observe  # noqa: E402
from haq.hardware.calibration import Fit  # noqa: E402
from haq.hardware.measurements import Measurement, read_measurements  # noqa: E402
from haq.hardware.profile import FOLDER, build_profile, split_target  # noqa: E402
from haq.resources import find_toml  # noqa: E402
from haq.validation import load_toml  # noqa: E402

PROFILES = ("a100", "t4", "mobile", "mobile-cpu", "tpu-v3")
RESULTS = HERE / "results"


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    rows = read_measurements(HERE / "published.csv")
    further = read_measurements(HERE / "held_out.csv")
    found = pd.DataFrame(
        [record for name in PROFILES for record in (*judged(name, rows), *held_out(name, rows, further))]
    )
    found.round(4).to_csv(RESULTS / "predictions.csv", index=False, lineterminator="\n")
    summary = pd.DataFrame(list(summarized(found)))
    summary.to_csv(RESULTS / "summary.csv", index=False, lineterminator="\n")
    ordered = pd.DataFrame(orderings())
    ordered.to_csv(RESULTS / "orderings.csv", index=False, lineterminator="\n")
    layers = pd.DataFrame(layer_orderings(HERE / "hawq_v3_layers.csv"))
    layers.to_csv(RESULTS / "t4_layers.csv", index=False, lineterminator="\n")
    scatter(found, RESULTS / "scatter.png")
    with pd.option_context("display.width", 200, "display.max_rows", 200, "display.max_columns", 20):
        print(summary.to_string(index=False), ordered.to_string(index=False), layers.to_string(index=False), sep="\n\n")


def document_of(name: str) -> tuple[dict[str, object], tuple[Fit, ...]]:
    """The committed profile as a document, and its fits."""
    path = find_toml(FOLDER, name, "target")
    raw = {"name": path.stem, **load_toml(path)}
    return raw, build_profile(raw, (), str(path)).fits


def judged(name: str, rows: Sequence[Measurement]) -> Iterable[dict[str, object]]:
    """One record per row, question and predictor."""
    raw, fits = document_of(name)
    for one in fits:
        mine = [row for row in rows if split_target(row.target)[0] == name and row.runtime == one.runtime]
        points = {row.id: point for row, point in zip(mine, as_points(raw, mine), strict=True)}
        yield from records(one, mine, "fit", {"haq": errors_of(raw, mine, HERE)})
        yield from alternate(raw, one, mine, points)
    for group in ([one for one in fits if not one.option], *([one] for one in fits if one.option)):
        mine = [r for r in rows if split_target(r.target)[0] == name and any(r.runtime == f.runtime for f in group)]
        yield from unseen(raw, group, mine)


def alternate(
    raw: dict[str, object], one: Fit, mine: Sequence[Measurement], points: dict[str, Point]
) -> Iterable[dict[str, object]]:
    """Both halves of the batch sizes of each network, each predicted from the other."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for row in mine:
        sizes[row.space, row.input] = sorted({*sizes.get((row.space, row.input), ()), row.batch})
    if max(len(found) for found in sizes.values()) < 3:
        return
    halves = [[r for r in mine if sizes[r.space, r.input].index(r.batch) % 2 == half] for half in (0, 1)]
    for seen, held, label in ((halves[0], halves[1], "1st, 3rd, ..."), (halves[1], halves[0], "2nd, 4th, ...")):
        document, _ = fitted(raw, [one], seen, HERE)
        predicted = {"haq": errors_of(document, held, HERE)}
        for name, predictor in BASELINES.items():
            latencies = predictor([points[r.id] for r in seen], [points[r.id] for r in held])
            predicted[name] = {key: value / points[key].latency_ms - 1 for key, value in latencies.items()}
        yield from records(one, held, f"alternate batches, fitted to the {label}", predicted)


def unseen(raw: dict[str, object], fits: Sequence[Fit], mine: Sequence[Measurement]) -> Iterable[dict[str, object]]:
    """Every network predicted without its rows, by the model and by the naive predictors."""
    points = dict(zip((row.id for row in mine), as_points(raw, mine), strict=True))
    predicted: dict[str, dict[str, float]] = {"haq": leave_one_model_out(raw, fits, mine, HERE)}
    for name in ("a + b x MACs", "MACs ratio"):
        predicted[name] = {}
        for model in dict.fromkeys(row.space for row in mine):
            seen, held = ([points[r.id] for r in mine if (r.space == model) == out] for out in (False, True))
            for key, value in BASELINES[name](seen, held).items():
                predicted[name][key] = value / points[key].latency_ms - 1
    for one in fits:
        yield from records(one, [row for row in mine if row.runtime == one.runtime], "unseen model", predicted)


def held_out(name: str, rows: Sequence[Measurement], further: Sequence[Measurement]) -> Iterable[dict[str, object]]:
    """The committed profile on rows that no fit and no choice saw; the naive predictors see the published ones."""
    raw, fits = document_of(name)
    for one in fits:
        seen, held = ([r for r in group if r.runtime == one.runtime and split_target(r.target)[0] == name]
                      for group in (rows, further))  # fmt: skip
        if not held:
            continue
        points = dict(zip((row.id for row in held), as_points(raw, held), strict=True))
        predicted = {"haq": errors_of(raw, held, HERE)}
        for label, predictor in BASELINES.items():
            latencies = predictor(as_points(raw, seen), list(points.values()))
            predicted[label] = {key: value / points[key].latency_ms - 1 for key, value in latencies.items()}
        yield from records(one, held, "held out", predicted)


def as_points(raw: dict[str, object], mine: Sequence[Measurement]) -> list[Point]:
    seen = observe(raw, mine, HERE)
    return [
        Point(row.id, (row.space, row.input, row.target, row.precision), (_device(row), row.precision), row.batch,
              float(one.workload.macs * row.batch), row.latency_ms)
        for row, one in zip(mine, seen, strict=True)
    ]  # fmt: skip


def _device(row: Measurement) -> str:
    """What rates are compared on: the option of a larger memory makes no other device, TF32 does."""
    base, options = split_target(row.target)
    return f"{base} tf32" if "tf32" in options else base


def records(
    one: Fit, rows: Sequence[Measurement], question: str, predicted: dict[str, dict[str, float]]
) -> Iterable[dict[str, object]]:
    for predictor, errors in predicted.items():
        for row in rows:
            if row.id in errors:
                yield {
                    "runtime": one.runtime, "target": row.target, "question": question, "predictor": predictor,
                    "id": row.id, "model": row.space, "input": row.input, "batch": row.batch,
                    "precision": row.precision, "measured_ms": row.latency_ms,
                    "modelled_ms": row.latency_ms * (1 + errors[row.id]), "error_percent": 100 * errors[row.id],
                }  # fmt: skip


def summarized(found: pd.DataFrame) -> Iterable[dict[str, object]]:
    """Mean absolute error, worst row, rank correlation and the share within 20 %, per runtime, question and precision.

    A rank correlation needs at least three rows.
    """
    found = found.assign(precision_group=found.precision.where(~found.precision.str.endswith(".json"), "mixed"))
    for keys, all_rows in found.groupby(["runtime", "question", "predictor"], sort=False):
        groups = [("all", all_rows), *all_rows.groupby("precision_group", sort=False)]
        for precision, rows in groups if len(groups) > 2 else groups[:1]:
            worst = rows.loc[rows.error_percent.abs().idxmax()]
            rho = spearmanr(rows.measured_ms, rows.modelled_ms)[0] if len(rows) > 2 else float("nan")
            yield {
                **dict(zip(("runtime", "question", "predictor"), keys, strict=True)), "precision": precision,
                "rows": len(rows), "mean_absolute_percent": round(rows.error_percent.abs().mean(), 1),
                "rank_correlation": round(float(rho), 3),
                "within_20_percent": round((rows.error_percent.abs() <= 20).mean(), 2),
                "worst_percent": round(worst.error_percent, 1),
                "worst_row": f"{worst.id} {worst.model} batch {worst.batch}",
            }  # fmt: skip


if __name__ == "__main__":
    main()
