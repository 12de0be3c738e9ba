"""`haq recover`: buy accuracy back at the least cost, or apply a step of a config's own ladder in no time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from haq.cli.show import change, echo, echo_json, json_option, megabytes, milliseconds, paragraph, percent, table
from haq.errors import InfeasibleError, InputError
from haq.recovering import MINIMIZE, Asked, Recovered, apply_step, recover_config

if TYPE_CHECKING:  # the allocator loads scipy, which a step must not wait for
    from haq.accuracy import Interval
    from haq.diagnose.recovery import Point, Recovery, Step

SOURCES = ("space", "model", "weights", "data")
"""Flags that say where the network and its data come from."""


@click.command(name="recover")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--max-drop", type=float, metavar="POINTS", help="Largest accuracy drop; 1 is one point.")
@click.option("--max-latency-ms", type=float, help="Largest modelled latency per batch.")
@click.option("--max-size-mb", type=float, help="Largest size of the weights.")
@click.option("--step", type=int, help="Apply this step of CONFIG's own ladder instead: no model, no data, no search.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The config to write, a .json file.")
@click.option("--target", "-t", help="The device that it runs on. [the config's]")
@click.option("--minimize", type=click.Choice(list(MINIMIZE)), help="What the repair should cost least of. [both]")
@click.option("--split", type=click.Choice(["search", "validation"]), help="The data that is served. [search]")
@click.option("--samples", type=click.IntRange(min=2), help="Judge on so many. [as many as the drop takes]")
@click.option("--space", "-s", help="Again, if the search had your own space.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Again, if the search had your own model.")
@click.option("--weights", help="Again, if the search was given weights.")
@click.option("--data", help="Again, if the search was given data.")
@json_option
def recover_command(config: Path, out: Path, step: int | None, *, as_json: bool, **flags: Any) -> None:
    """Restore the accuracy of CONFIG's quantized network by the cheapest repair that meets the limits.

    First what is free (ranges, biases, scales), then layers raised to wider formats as an exact solver chooses them,
    measured; at last what turns out not to be needed is put back. The whole network at its widest is the last answer.
    Exit code 3 when limits on accuracy and cost clash: nothing is written then, and the two nearest points are shown.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if step is not None:
        if given:
            raise InputError(
                "a step of the ladder needs nothing else", where="--step", got=", ".join(map(_flag, given)),
                expected="--out alone",
            )  # fmt: skip
        _step(config, step, out, as_json=as_json)
        return
    if "max_drop" not in given:
        raise InputError("nothing says how much accuracy to restore", expected="--max-drop POINTS, or --step K")
    _recover(config, out, given, as_json=as_json)


def _step(config: Path, step: int, out: Path, *, as_json: bool) -> None:
    found = apply_step(config, step, out)
    if as_json:
        echo_json(found)
        return
    metrics, left = found["metrics"], len(found.get("recovery", []))
    echo(f"step {step}: {_costs({name: m['value'] for name, m in metrics.items()})}; {_said(metrics)}")
    echo(f"wrote {out}; {left} steps are left above it" if left else f"wrote {out}, the last step of its ladder")


def _said(metrics: Mapping[str, Any]) -> str:
    """`accuracy 98.10 % on 1000 search samples, drop +0.30 (-0.10 to +0.70)`."""
    if "accuracy" not in metrics:
        return "accuracy unknown"
    m = metrics["accuracy"]
    text = f"accuracy {percent(m['value'])} on {m['samples']} {m['split']} samples, drop {m['drop_points']:+.2f}"
    if "drop_interval" in m:
        text += f" ({m['drop_interval']['low']:+.2f} to {m['drop_interval']['high']:+.2f})"
    return text + ", measured when it was exported"


def _recover(config: Path, out: Path, given: dict[str, Any], *, as_json: bool) -> None:
    from haq.cli.progress import shown_steps
    from haq.diagnose.recovery import Limits

    sources = {key: given.pop(key) for key in SOURCES if key in given}
    size_mb = given.pop("max_size_mb", None)
    for name in ("max_latency_ms",):
        if not given.get(name, 1.0) > 0:
            raise InputError("a limit of nothing", where=_flag(name), got=given[name], expected="more than 0")
    limits = Limits(
        given.pop("max_drop"), given.pop("max_latency_ms", None), None if size_mb is None else 1e6 * size_mb
    )
    with shown_steps() as report:
        found = recover_config(Asked(config, out, limits, **given), sources, report)
    if as_json:
        echo_json({"config": config_id(found), "out": str(out) if found.config else None, **found.recovery.to_json()})
    else:
        _show(found, out)
    if found.config is None:
        raise InfeasibleError(_clash(found.recovery))


def config_id(found: Recovered) -> str | None:
    """Of the config that was written."""
    return None if found.config is None else str(found.config["id"])


def _show(found: Recovered, out: Path) -> None:
    recovery = found.recovery
    points = [("before", recovery.before), ("after" if recovery.met else "nearest in accuracy", recovery.after)]
    points += [("nearest in cost", point) for point in recovery.nearest[1:]]
    title = f"{found.before['id']} of {found.before['model']['model']} on {found.before['target']['name']}, judged on "
    title += f"{recovery.samples} samples; latency and size are modelled"
    columns = ("", "drop, points", "95 %", "ms", "MB", "layers raised", "free repairs")
    table(title, columns, [_point(name, point) for name, point in points])
    if recovery.steps:
        rows = [_row(step, recovery) for step in recovery.steps]
        table("what it took, each on top of those above", ("step", "points", "nats", "95 %", "ms", "MB"), rows)
    for vain in recovery.vain:
        paragraph(f"tried in vain: {vain.what}: {vain.why}")
    if found.config is not None:
        numbers = f" and {found.config['parameters']}" if "parameters" in found.config else ""
        echo(f"wrote {out}{numbers}, after {recovery.forwards:.0f} sample-forwards and {recovery.seconds:.0f} s")


def _point(name: str, point: Point) -> tuple[str, ...]:
    return (
        name, f"{point.drop_points:+.2f}", _interval(point.drop_interval), _ms(point.costs.get("latency_ms")),
        _mb(point.costs.get("size_bytes")), str(len(point.change.raised)), str(len(point.change.repairs)),
    )  # fmt: skip


def _row(step: Step, recovery: Recovery) -> tuple[str, ...]:
    effect, costs = step.effect, recovery.before.costs
    nats = "" if effect.nats is None else f"{effect.nats:+.4f}"
    interval = _interval(effect.nats_interval, 4) if effect.nats is not None else _interval(effect.points_interval)
    return (
        step.what, "" if effect.points is None else f"{effect.points:+.2f}", nats, interval,
        _added(step.latency_ms, costs.get("latency_ms"), milliseconds),
        _added(step.size_bytes, costs.get("size_bytes"), megabytes),
    )  # fmt: skip


def _added(value: float | None, whole: float | None, shown: Any) -> str:
    """`+0.012 (+3.1 %)`, of what it is before."""
    if value is None or not whole:
        return "unknown"
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else ''}{shown(value)} ({change(whole + value, whole)})"


def _clash(recovery: Recovery) -> str:
    """By how much the limits are missed, and where."""
    units = {"max_drop_points": ("points", 1.0), "max_latency_ms": ("ms", 1.0), "max_size_bytes": ("MB", 1e-6)}
    parts = []
    for name, point in zip(("the most accurate point", "the best within the costs"), recovery.nearest, strict=False):
        over = [f"{value * units[key][1]:.3g} {units[key][0]}" for key, value in point.excess(recovery.limits).items()]
        parts.append(f"{name} is {' and '.join(over)} over ({_costs(point.costs)}, drop {point.drop_points:+.2f})")
    return f"the limits cannot all be met: {'; '.join(parts)}"


def _costs(costs: Mapping[str, float]) -> str:
    return f"{_ms(costs.get('latency_ms'))} ms and {_mb(costs.get('size_bytes'))} MB"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else milliseconds(value)


def _mb(value: float | None) -> str:
    return "unknown" if value is None else megabytes(value)


def _interval(interval: Interval | None, digits: int = 2) -> str:
    return "unknown" if interval is None else f"{interval.low:+.{digits}f} to {interval.high:+.{digits}f}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


COMMANDS = (recover_command,)
