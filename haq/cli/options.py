"""The flags of `haq search`: each is a key of the spec, and only the given ones override the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from haq.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

_KEYS: Mapping[str, tuple[str, str]] = {
    "space": ("scope", "space"),
    "model": ("scope", "model"),
    "weights": ("scope", "weights"),
    "data": ("scope", "data"),
    "granularity": ("scope", "granularity"),
    "grouping": ("scope", "grouping"),
    "pin": ("scope", "pins"),
    "target": ("hardware", "targets"),
    "batch": ("hardware", "batch"),
    "max_drop": ("accuracy", "max_drop_points"),
    "max_class_drop": ("accuracy", "max_class_drop_points"),
    "max_kl": ("accuracy", "max_kl_nats"),
    "min_agreement": ("accuracy", "min_agreement"),
    "metric": ("accuracy", "metric"),
    "direction": ("accuracy", "direction"),
    "samples": ("accuracy", "samples"),
    "observer": ("accuracy", "observer"),
    "ptq": ("accuracy", "ptq"),
    "max_latency_ms": ("latency", "max_ms"),
    "max_latency_rise_ms": ("latency", "max_rise_ms"),
    "reserve": ("recovery", "reserve_points"),
    "max_size_mb": ("deployment", "max_size_mb"),
    "max_memory_mb": ("deployment", "max_memory_mb"),
    "max_energy_mj": ("deployment", "max_energy_mj"),
    "trials": ("search", "trials"),
    "seed": ("search", "seed"),
    "sampler": ("search", "sampler"),
    "timeout": ("search", "timeout_s"),
    "until_converged": ("search", "until_converged"),
    "storage": ("search", "storage"),
    "racing": ("search", "racing"),
}
"""Flag (as a Python name) -> section and key of the spec."""

_PER_TARGET = ("max_latency_ms", "max_latency_rise_ms", "max_size_mb", "max_memory_mb", "max_energy_mj")

_OPTIONS = (
    click.option("--space", "-s", help="What to search: a name of `haq spaces`, or a TOML path."),
    click.option("--target", "-t", multiple=True, help="A name of `haq targets`, or a TOML path; repeatable."),
    click.option("--batch", "-b", type=int, help="Samples per inference, which latency is for. [1]"),
    click.option("--trials", "-n", type=int, help="Assignments to measure. [64]"),
    click.option("--max-drop", type=float, metavar="POINTS", help="Largest accuracy drop; 1 is one point."),
    click.option("--max-class-drop", type=float, metavar="POINTS", help="Largest drop of any single class."),
    click.option("--max-kl", type=float, metavar="NATS", help="Largest mean KL divergence from FP32."),
    click.option("--min-agreement", type=float, metavar="FRACTION", help="Smallest share of answers that are FP32's."),
    click.option("--max-latency-ms", multiple=True, metavar="[TARGET=]MS", help="Largest latency per batch."),
    click.option("--max-latency-rise-ms", multiple=True, metavar="[TARGET=]MS", help="Largest latency above FP32's."),
    click.option("--max-size-mb", multiple=True, metavar="[TARGET=]MB", help="Largest size of the weights."),
    click.option("--max-memory-mb", multiple=True, metavar="[TARGET=]MB", help="Largest peak of the activations."),
    click.option("--max-energy-mj", multiple=True, metavar="[TARGET=]MJ", help="Largest energy per batch."),
    click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Your own model in place of the space's."),
    click.option("--weights", help="A checkpoint, or a model folder (never unpickled unsafely)."),
    click.option("--data", help="Your data: a folder of class folders, or a TSV of texts."),
    click.option(
        "--metric",
        metavar="NAME|PACKAGE.MODULE:METRIC",
        help="What drives the search: top-1 accuracy, loss, kl, agreement, or your own. [the task's]",
    ),
    click.option("--direction", metavar="maximize|minimize", help="Which way your own metric is better. [maximize]"),
    click.option("--samples", type=int, help="Measure on so many samples of the search split. [all]"),
    click.option("--observer", help="How activation ranges are calibrated: minmax, percentile, mse or entropy. [mse]"),
    click.option("--ptq", metavar="NAME,...", help="Quantization techniques, as `haq techniques` lists them."),
    click.option("--pin", multiple=True, metavar="PATTERN=BITS", help="Fix the bit-width of layers; repeatable."),
    click.option("--granularity", help="What shares a bit-width: model, block or layer. [layer]"),
    click.option("--grouping", help="Tie layers that read one tensor or are added: natural or none. [natural]"),
    click.option("--reserve", type=float, metavar="POINTS", help="Part of --max-drop that is left unused. [0]"),
    click.option("--sampler", help="haq, or Optuna's tpe, nsga2, nsga3, gp, qmc or random alone. [haq]"),
    click.option("--seed", type=int, help="Same seed, same history. [0]"),
    click.option("--timeout", type=float, metavar="SECONDS", help="Ask no new candidate after so long."),
    click.option(
        "--until-converged",
        is_flag=True,
        default=None,
        help="End when no front grows beyond the noise any more; at most --trials, 500 unless said.",
    ),
    click.option("--racing/--no-racing", default=None, help="Stop measuring what is beaten or over a limit. [racing]"),
    click.option("--storage", metavar="URL", help="For dashboards: sqlite (in DIR), none, or an Optuna URL. [sqlite]"),
)


def search_options(command: F) -> F:
    """Add every flag of the search to a command; they arrive as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_tables(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags that were given, as the sections and keys of the spec."""
    tables: dict[str, dict[str, Any]] = {}
    for flag, value in flags.items():
        if value is None or value == ():
            continue
        section, key = _KEYS[flag]
        if flag in _PER_TARGET:
            value = _limit(flag, value)
        elif flag == "ptq":
            value = [name.strip() for name in value.split(",") if name.strip()]
        elif flag == "pin":
            value = dict(_pin(text) for text in value)
        tables.setdefault(section, {})[key] = value
    return tables


def _limit(flag: str, texts: Sequence[str]) -> float | dict[str, float]:
    """One number for all targets, or one per `TARGET=`."""
    name = f"--{flag.replace('_', '-')}"
    pairs = [text.rpartition("=") for text in texts]
    if len(texts) == 1 and not pairs[0][1]:
        return _number(name, texts[0])
    for text, (target, equals, _) in zip(texts, pairs, strict=True):
        if not equals or not target:
            raise InputError("several limits without their targets", where=name, got=text, expected="TARGET=NUMBER")
    return {target: _number(name, number) for target, _, number in pairs}


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError("not a number", where=name, got=text, expected="NUMBER or TARGET=NUMBER") from None


def _pin(text: str) -> tuple[str, int]:
    pattern, _, bits = text.rpartition("=")
    if not pattern or bits not in ("4", "8", "16", "32"):
        raise InputError("not a pin", where="--pin", got=text, expected="PATTERN=BITS with 4, 8, 16 or 32 bits")
    return pattern, int(bits)
