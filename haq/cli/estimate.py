"""`haq estimate`: the cost of one assignment, with no weights and no data."""

from __future__ import annotations

from pathlib import Path

import click

from haq.cli.explained import explained_json, show_explained
from haq.cli.show import change, echo, echo_json, json_option, milliseconds, table
from haq.errors import InputError
from haq.precision import GROUPS
from haq.pricing import Estimate, price
from haq.scaling import Scaling
from haq.spacefile import SpaceFile, load_space, with_input, with_seq_len
from haq.tracecache import workload_of
from haq.trust import Trust


@click.command()
@click.option("--space", "-s", required=True, help="A search space: a name of `haq spaces`, or a TOML path.")
@click.option("--target", "-t", required=True, help="A target: a name of `haq targets`, or a TOML path.")
@click.option("--batch", "-b", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per inference.")
@click.option("--bits", type=click.Choice(["4", "8", "16", "32"]), help="Every layer takes this bit-width.")
@click.option("--config", type=click.Path(path_type=Path), help="A haq.config/v1 file, or JSON of layer: bits.")
@click.option(
    "--group",
    type=click.Choice([str(group) for group in GROUPS]),
    help="4-bit weights of Linear and 1x1 convolutions take one scale for so many inputs, where the target can.",
)
@click.option("--per-token", is_flag=True, help="8-bit inputs of Linear take a scale per token, where the target can.")
@click.option("--input", "shape", metavar="CxHxW", help="Another input shape per sample, such as 3x160x160.")
@click.option("--seq-len", type=click.IntRange(min=1), help="Another number of tokens per sample.")
@click.option("--explain", is_flag=True, help="Also say what bounds each part, and why fewer bits do not help.")
@json_option
def estimate(
    space: str,
    target: str,
    batch: int,
    bits: str | None,
    config: Path | None,
    group: str | None,
    shape: str | None,
    seq_len: int | None,
    *,
    per_token: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Price one assignment on one target: latency, size, memory, traffic, energy (modelled, never measured)."""
    if (bits is None) == (config is None):
        raise InputError("say which assignment to price", expected="exactly one of --bits B and --config FILE")
    choice: int | Path = int(bits) if bits is not None else config or Path()
    scaling = Scaling(None if group is None else int(group), per_token)
    workload = workload_of(_shaped(load_space(space), shape, seq_len))
    found = price(workload, target, choice, batch=batch, scaling=scaling)
    if as_json:
        echo_json({**found.to_json(), **({"parts": explained_json(found)} if explain else {})})
        return
    _show(found)
    if explain:
        show_explained(found)


def _trust(found: Estimate) -> str:
    trust = Trust.of(found.profile)
    return str(trust) if trust.latency_spread is not None else f"of unknown error {trust}"


def _shaped(space: SpaceFile, shape: str | None, seq_len: int | None) -> SpaceFile:
    if shape is not None:
        space = with_input(space, shape)
    return with_seq_len(space, seq_len) if seq_len is not None else space


def _show(found: Estimate) -> None:
    figures, base = found.cost.figures(), found.baseline.figures()
    units = (
        ("latency_ms", f"latency, ms per batch of {found.cost.batch}", 1.0),
        ("size_bytes", "size of the weights, MB", 1e-6),
        ("activation_peak_bytes", "activations at the peak, MB", 1e-6),
        ("traffic_bytes", "memory traffic, MB per batch", 1e-6),
        ("energy_mj", "energy, mJ per batch", 1.0),
        ("macs", "multiply-accumulates, G per batch", 1e-9),
    )
    rows = []
    for key, name, scale in units:
        if key not in figures:
            rows.append((name, "unknown", "", ""))
            continue
        value, reference = figures[key], base.get(key)
        compared = (f"{reference * scale:.4g}", change(value, reference)) if reference is not None else ("", "")
        rows.append((name, f"{value * scale:.4g}", *compared))
    table(
        f"{found.workload.name} on {found.profile.name}: {found.profile.title}\n"
        f"latency modelled: {milliseconds(found.cost.latency_ms)} ms, {_trust(found)}",
        ("figure", "asked", "FP32 there", "change"),
        rows,
    )
    if found.fallbacks:
        first = found.fallbacks[0]
        echo(
            f"{len(found.fallbacks)} of {len(found.executed)} layers fall back, the first: {first.layer} "
            f"{first.requested} -> {first.executed} ({first.reason})"
        )
    for op, count in found.unsupported_counts().items():
        echo(f"not priced: {op} ({count} times); the totals leave it out")


COMMANDS = (estimate,)
