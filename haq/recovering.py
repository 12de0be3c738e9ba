"""The verbs that recover: measure the cheapest repair of a config, apply a step of its ladder, or give it a ladder.

torch and the allocator are imported inside, so that applying a step loads neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.configfile import executed_assignment, measured, read_config, write_config
from haq.diagnose.stepping import parameters_beside, stepped
from haq.errors import InputError
from haq.textfile import check_writable, write_file

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch or the allocator
    from haq.diagnose.finding import Diagnosis
    from haq.diagnose.recovery import Limits, Point, Recovery
    from haq.hardware.profile import HardwareProfile
    from haq.nn.exportable import Exportable
    from haq.sensitivity import Sensitivity

Report = Callable[[str, int, int], None]
"""(what is being done, networks measured so far, how many there will be as far as it is known, else 0)."""

MINIMIZE: Mapping[str, Mapping[str, float]] = {
    "both": {"latency_ms": 1.0, "size_bytes": 1.0},
    "latency": {"latency_ms": 1.0},
    "size": {"size_bytes": 1.0},
}
"""What a repair should cost least of: weights of figures relative to what they are now."""


@dataclass(frozen=True)
class Asked:
    """What is recovered, within which limits, and where it goes. target: another than the config's.

    split, samples: what the drop is judged on; samples None: as many as it takes to see it, at least the usual number.
    """

    config: Path
    out: Path
    limits: Limits
    target: str | None = None
    split: str = "search"
    samples: int | None = None
    minimize: str = "both"


@dataclass(frozen=True, eq=False)
class Recovered:
    """config: what was written; None where the limits cannot be met, and nothing was."""

    before: Mapping[str, Any]
    diagnosis: Diagnosis
    recovery: Recovery
    config: Mapping[str, Any] | None


def apply_step(config: Path, step: int, out: Path) -> dict[str, Any]:
    """Write the config after a step of its own ladder, with its numbers beside it; no model, no data, no search.

    Raises InputError where the config has no such step, and where its numbers are absent or cannot be copied.
    """
    raw = read_config(config)
    _check_out(config, out)
    result = stepped(raw, step, str(config))
    if (beside := parameters_beside(raw, config, out)) is not None:
        write_file(beside[0], beside[1], "parameters")
    write_config(out, result)
    return result


def recover_config(asked: Asked, given: Mapping[str, str], report: Report) -> Recovered:
    """Diagnose a config's network, buy its accuracy back at the least cost, and write what meets the limits.

    given: `space`, `model`, `weights`, `data`, as for `haq export`: nothing is loaded because a file names it. Raises
    InputError as `haq diagnose` does, and on too few samples to see the drop.
    """
    from haq.diagnose.examine import diagnose
    from haq.diagnose.power import samples_to_see
    from haq.diagnose.recover import recover
    from haq.diagnose.rungs import pricing
    from haq.diagnosing import Judging, look_at, open_network
    from haq.errors import lookup
    from haq.hardware.profile import load_profile
    from haq.nn.diagnosis.repaired import write_repaired
    from haq.scaling import Scaling

    weights = lookup(MINIMIZE, asked.minimize, "figure", where="--minimize")
    samples_to_see(asked.limits.max_drop_points)  # what is no drop is said before anything is loaded
    raw = read_config(asked.config)
    _check_out(asked.config, asked.out)
    profile = load_profile(str(raw["target"]["name"]) if asked.target is None else asked.target)
    report("opening the network and its data", 0, 0)
    if profile.name != raw["target"]["name"]:
        raw = _retargeted(raw, asked.config, profile, given)
    what = open_network(raw, asked.config, asked.split, given)
    bench, evidence = look_at(what, profile, Judging(asked.split, asked.samples, asked.limits.max_drop_points))
    found = diagnose(bench, evidence, None, progress=report)
    options = pricing(
        what.workload, what.executed, profile, batch=int(raw["target"].get("batch", 1)),
        scaling=Scaling.of(raw.get("quantization", {}).get("ptq", ())),
    )  # fmt: skip
    result = recover(
        bench, found, options, asked.limits, minimize=weights, progress=lambda text, done: report(text, done, 0)
    )
    if not result.met:
        return Recovered(raw, found, result, None)
    metrics = _metrics(result.after, bench.fp32().scores, asked.split, raw)
    subject = bench.changed(result.after.change)
    return Recovered(raw, found, result, write_repaired(what, subject, result.after.change, metrics, asked.out))


def with_ladder(what: Exportable, file: Path, *, own_numbers: bool) -> tuple[Exportable, str]:
    """The same with the recovery ladder in its config, unless it has one; or why it gets none, in a sentence.

    own_numbers: whether the config will have a parameters file. Its steps then raise layers to floats only, which take
    the model's own numbers: nobody would make new integers for them. A config in a run's folder takes the losses that
    the run measured.
    """
    from haq.diagnose.ladder import Measured, ladder, ladder_json, losses_of, pieces_of
    from haq.diagnose.rungs import pricing
    from haq.hardware.profile import load_profile
    from haq.nn.laddering import Heights
    from haq.scaling import Scaling

    config = what.config
    if "recovery" in config:
        return what, ""
    if what.task is None:
        return what, "no recovery ladder: there is no data to measure its steps on"
    known = _of_run(file, what)
    try:
        options = pricing(
            what.workload, what.executed, load_profile(str(config["target"]["name"])),
            batch=int(config["target"].get("batch", 1)), groups=None if known is None else known[0],
            scaling=Scaling.of(config.get("quantization", {}).get("ptq", ())), only_floats=own_numbers,
        )  # fmt: skip
    except InputError as error:
        return what, f"no recovery ladder: {error}"
    heights = Heights(what, own_numbers=own_numbers)
    if known is not None:
        sensitivity: Sensitivity | None = known[1]
    else:
        # Numbers that were trained or repaired lose what no new quantization does.
        sensitivity = None if "parameters" in config else heights.sensitivity(pieces_of(options))
    steps = ladder(options, losses_of(options, sensitivity))
    if not steps:
        return what, f"no recovery ladder: every layer runs in the widest that {options.target} executes"
    how = Measured("search", heights.fp32(), heights.scores({}), heights.scores)
    latency = config.get("metrics", {}).get("latency_ms", {})
    about = {key: latency[key] for key in ("confidence", "latency_spread") if key in latency}
    return replace(what, config={**config, "recovery": ladder_json(steps, how, about)}), ""


def _check_out(config: Path, out: Path) -> None:
    if out.suffix != ".json" or out.resolve() == config.resolve():
        raise InputError("not where a config can go", where="--out", got=str(out), expected="a new .json file")
    check_writable(out, "--out")


def _retargeted(
    raw: Mapping[str, Any], file: Path, profile: HardwareProfile, given: Mapping[str, str]
) -> dict[str, Any]:
    """The config as another target runs it, without what was measured or modelled on its own."""
    from haq.candidate import config_id
    from haq.hardware.legalize import legalize
    from haq.spacefile import space_of_config
    from haq.tracecache import workload_of

    workload = workload_of(space_of_config(raw, given.get("space"), where=str(file)), given.get("model"))
    legal = legalize(workload, executed_assignment(raw), profile)
    gone = ("requested_bits", "recovery", "activations")
    return {
        **{key: value for key, value in raw.items() if key not in gone},
        "id": config_id(legal.executed, profile.name),
        "target": {
            "name": profile.name, "batch": raw["target"].get("batch", 1), "title": profile.title,
            "confidence": profile.confidence,
        },
        "layers": legal.executed.to_json(),
        "metrics": {},
        "fallbacks": [fallback.to_json() for fallback in legal.fallbacks],
    }  # fmt: skip


def _metrics(point: Point, fp32: Any, split: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of the config that is written: the accuracy that was measured on the judged samples, and modelled figures."""
    from haq.accuracy import compare

    found: dict[str, Any] = {}
    scores = point.outcome.scores
    if scores is not None and fp32 is not None:
        found["accuracy" if split == "search" else f"accuracy_{split}"] = measured(compare(fp32, scores, split))
    latency = raw.get("metrics", {}).get("latency_ms", {})
    about = {key: latency[key] for key in ("confidence", "latency_spread") if key in latency}
    for name, value in sorted(point.costs.items()):
        whole = int(value) if name.endswith("_bytes") else value
        found[name] = {"value": whole, "kind": "modelled", **(about if name == "latency_ms" else {})}
    return found


def _of_run(file: Path, what: Exportable) -> tuple[tuple[tuple[str, ...], ...], Sensitivity] | None:
    """The groups and sensitivities of the run that a config lies in; None where it lies in none of its network."""
    from haq.rundir import CONFIG_FOLDER, RUN_FILE, SENSITIVITY_FILE
    from haq.sensitivity import read_sensitivity

    run = file.resolve().parent.parent
    if file.resolve().parent.name != CONFIG_FOLDER or not (run / SENSITIVITY_FILE).is_file():
        return None
    info = json.loads((run / RUN_FILE).read_text())
    groups = tuple(tuple(about["layers"]) for about in info["space"]["groups"].values())
    is_same = info["provenance"].get("weights_hash") == what.config["model"].get("weights_hash")
    if not is_same or {layer for group in groups for layer in group} != set(what.workload.layer_names):
        return None
    return groups, read_sensitivity(run / SENSITIVITY_FILE)
