"""`haq diagnose`: what went wrong in a quantized network, in which layer, and what undoing it regains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.progress import duration, shown_steps
from haq.cli.show import echo, echo_json, json_option, paragraph, table
from haq.diagnose.plain import diagnosis_json, explained_share, ranked
from haq.diagnosing import Asked, Diagnosed, diagnose_config
from haq.errors import InputError

if TYPE_CHECKING:
    from haq.accuracy import Interval
    from haq.diagnose.finding import Effect, Finding, Suspicion

SOURCES = ("space", "model", "weights", "data")
"""Flags that say where the network and its data come from."""
PAGES = (".png", ".svg", ".pdf")
SHOWN = 12
"""Rows of a table; JSON has them all."""


@click.command(name="diagnose")
@click.argument("subject", metavar="CONFIG|DIR", type=click.Path(path_type=Path))
@click.option("--target", "-t", help="The device that it runs on. [the config's]")
@click.option("--id", help="Which point of the run DIR. [the one nearest to the limit on the drop]")
@click.option("--split", type=click.Choice(["search", "validation"]), default="search", show_default=True,
              help="The data that is served: some of it is looked at, other samples judge.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=2), help="Judge on so many. [256]")
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="The drop that has to be seen; fails on too few samples."
)
@click.option("--artifact", type=click.Path(path_type=Path), help="A file exported from CONFIG: is it stored as asked?")
@click.option("--page", type=click.Path(path_type=Path), help="Draw layers, ranges and the worst tensors: a .png file.")
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--data", help="Again, if the search was given data.")
@json_option
def diagnose_command(subject: Path, page: Path | None, *, as_json: bool, **flags: Any) -> None:
    """Name what the quantized network of CONFIG lost its accuracy or its speed to, with proof.

    A suspicion becomes a finding when undoing just its cause, on samples that no statistic has seen, regains something
    beyond the noise. Findings that cost time or bytes are modelled. Everything else is listed as without an effect.
    """
    given = {key: flags[key] for key in SOURCES if flags[key] is not None}
    if page is not None and page.suffix not in PAGES:
        raise InputError("not a picture", where="--page", got=str(page), expected=f"a {', '.join(PAGES)} file")
    kept = ("target", "id", "split", "samples", "max_drop", "artifact")
    asked = Asked(subject, **{key: flags[key] for key in kept})
    with shown_steps() as report:
        found = diagnose_config(asked, given, report)
    if page is not None:
        _draw(found, page)
    if as_json:
        echo_json(_json(found, asked, page))
        return
    _show(found)
    if page is not None:
        echo(f"wrote {page}")


def _json(found: Diagnosed, asked: Asked, page: Path | None) -> dict[str, Any]:
    about = {"config": found.config["id"], "target": found.costs.profile.name, "batch": found.costs.batch,
             "split": asked.split, "samples": found.samples}  # fmt: skip
    return {**about, **({} if page is None else {"page": str(page)}), **diagnosis_json(found.diagnosis)}


def _draw(found: Diagnosed, page: Path) -> None:
    from haq.report.diagnosis_page import draw_diagnosis  # matplotlib loads behind this, and only here

    page.parent.mkdir(parents=True, exist_ok=True)
    draw_diagnosis(found.evidence, found.diagnosis, f"{found.title}: {summary(found)}", page)


def _show(found: Diagnosed) -> None:
    if found.chosen:
        echo(found.chosen)
    findings = ranked(found.diagnosis.findings)
    if findings:
        columns = ("mode", "layer", "undone, it regains", "statistic", "repair")
        shown = findings[:SHOWN]
        table(f"{found.title}: {_count(len(findings), 'finding')}", columns, map(_cells, shown), left=5)
        for finding in shown:
            paragraph(finding.suspicion.text)
        if len(findings) > len(shown):
            echo(f"and {len(findings) - len(shown)} more: --json has them all")
    else:
        echo(f"{found.title}: no finding")
    echo(summary(found))
    _show_suspected(found.diagnosis.suspected)
    echo(
        f"judged on {found.samples:,} samples, {found.diagnosis.forwards:,.0f} sample-forwards, "
        f"{duration(found.diagnosis.seconds)}; milliseconds are modelled"
    )


def _show_suspected(suspected: tuple[Suspicion, ...]) -> None:
    if not suspected:
        return
    shown = sorted(suspected, key=lambda suspicion: -suspicion.severity)[:SHOWN]
    rows = [(s.mode, where(s), _statistic(s)) for s in shown]
    title = f"{_count(len(suspected), 'suspicion')}, no effect measured"
    more = f" (the {SHOWN} most severe)" if len(suspected) > SHOWN else ""
    table(title + more, ("mode", "layer", "statistic"), rows, left=3)


def summary(found: Diagnosed) -> str:
    """What was lost, how much of it the findings explain together, and how much stays unexplained."""
    lost, share = found.diagnosis.lost, explained_share(found.diagnosis)
    text = f"against FP32 it lost {effect(lost)}" if effect(lost) else "what it lost against FP32 is unknown"
    if share is None:
        return f"{text}: nothing to explain"
    proved = [f for f in found.diagnosis.findings if f.effect.nats is not None or f.effect.points is not None]
    if not proved:
        return f"{text}; no cause is proved"
    return (
        f"{text}; the findings explain {100 * share:.0f} % of it together, {100 * (1 - share):.0f} % stays unexplained"
    )


def _cells(finding: Finding) -> tuple[str, ...]:
    return finding.mode, where(finding.suspicion), effect(finding.effect), _statistic(finding.suspicion), finding.repair


def where(suspicion: Suspicion) -> str:
    """The layer, its operand, and how many more it is about."""
    operand = "" if suspicion.index is None else f", operand {suspicion.index}"
    others = len(set(suspicion.layers) - {suspicion.layer})
    return (suspicion.layer or "whole network") + operand + (f" and {others} more" if others else "")


def _statistic(suspicion: Suspicion) -> str:
    return f"{suspicion.statistic} {suspicion.value:.3g} (threshold {suspicion.threshold:.3g})"


def effect(found: Effect) -> str:
    """What is known of it, each with its 95 % interval: `+2.00 points (0.50 to 3.50), 0.03 nats (0.02 to 0.04)`."""
    parts = []
    if found.points is not None:
        parts.append(f"{found.points:+.2f} points{_within(found.points_interval, '.2f')}")
    if found.nats is not None:
        parts.append(f"{found.nats:.3g} nats{_within(found.nats_interval, '.3g')}")
    if found.latency_ms is not None:
        parts.append(f"{found.latency_ms:.3g} ms{_within(found.latency_interval, '.3g')}")
    if found.size_bytes:
        parts.append(f"{found.size_bytes:+,} bytes")
    return ", ".join(parts)


def _within(interval: Interval | None, digits: str) -> str:
    return "" if interval is None else f" ({interval.low:{digits}} to {interval.high:{digits}})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


COMMANDS = (diagnose_command,)
