"""The verbs of haq: search a spec or a model in memory, go on with a run, rewrite what a run directory shows.

This is the glue between the parts. torch, Optuna and matplotlib are imported where they are used, so that importing
this module stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.constraints import Constraints
from haq.errors import InputError
from haq.grouping import natural_groups
from haq.hardware.profile import load_profile
from haq.hardware.size import fp32_size_bytes
from haq.hardware.table import cost_table
from haq.pricing import Estimate, price
from haq.problems import Shape, build_problem, content_hash, load_network
from haq.regret import RegretMatrix, as_recorded, cheapest, choices_of_run, priced_now, regret_matrix
from haq.resources import shipped_names
from haq.rundir import RUN_FILE, Run, read_run
from haq.scaling import PLAIN, Scaling
from haq.space import Rule, build_space
from haq.spacefile import FOLDER, load_space
from haq.spec import Scope, Spec, spec_from, spec_of_run
from haq.tracecache import workload_of
from haq.workload import Workload

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from torch import nn

    from haq.engine.events import Progress
    from haq.nn.bundle import Bundle
    from haq.nn.task import Inputs, Task


def estimate(space: str, target: str, *, bits: int = 8, batch: int = 1, scaling: Scaling = PLAIN) -> Estimate:
    """The modelled cost of a space's network with every layer at one bit-width; no weights, no data.

    scaling: `haq.scaling.Scaling(group=64, per_token=True)` asks for finer scales than one per channel and tensor.
    """
    return price(workload_of(load_space(space)), target, bits, batch=batch, scaling=scaling)


def search_spec(
    spec: Spec, out: Path, progress: Progress, sources: Scope | None = None, metric: str | None = None
) -> Run:
    """Run the search of a spec in the run directory `out`, or go on with it there; returns the run.

    sources: where space, model, weights and data are loaded from, when that is not what the spec says (a run that is
    resumed elsewhere); metric: the same for code that the spec names as its metric. Raises InputError on wrong input
    and InfeasibleError when limits cannot be met.
    """
    return _run(*load_network(spec, sources, metric), spec, out, progress)


def resume(directory: Path, given: Mapping[str, str], progress: Progress) -> Run:
    """Go on with the search in a run directory.

    given: `space`, `model`, `metric`, `weights` or `data` by path. Whatever the run took from outside must be given
    again: no code and no file is loaded because a run directory, which people pass around, names it. Hashes are
    checked.
    """
    spec = spec_of_run(read_run(directory).info["spec"], where=f"{directory}/run.json")
    parts = {key: value for key, value in given.items() if key != "metric"}
    sources = _sources(spec, directory, parts, ("model", "weights", "data"))
    return search_spec(spec, directory, progress, sources, _metric_again(spec, directory, given.get("metric")))


def workload_of_run(run: Run, given: Mapping[str, str]) -> Workload:
    """The network of a run, traced anew; shipped spaces need nothing, the user's own `space` and `model` come again.

    Raises InputError when something is not given again, or when the traced network is another than the run measured.
    """
    spec = spec_of_run(run.info["spec"], where=f"{run.path}/run.json")
    sources = _sources(spec, run.path, given, ("model",))
    workload = workload_of(load_space(sources.space), sources.model)
    for target, costs in (run.history.baseline.costs if run.history.baseline else {}).items():
        macs = run.info["targets"][target]["batch"] * workload.macs
        for figure, traced in (("size_bytes", fp32_size_bytes(workload)), ("macs", macs)):
            if costs.get(figure, traced) != traced:
                raise InputError(
                    f"the network is not the one of the run: {figure} of FP32 differs", where=str(run.path),
                    got=traced, expected=f"{costs[figure]:.0f}",
                )  # fmt: skip
    return workload


def regret_of_run(run: Run, limits: Constraints, minimize: str, given: Mapping[str, str]) -> tuple[RegretMatrix, str]:
    """What each target's best point of a run costs on its other targets, and a note on the prices, or no text.

    Prices are the run's own unless a profile has changed since; they are then today's, which takes the network:
    `given` as in `workload_of_run`.
    """
    spec, history = spec_of_run(run.info["spec"], where=f"{run.path}/run.json"), run.history
    choices = choices_of_run(history, run.targets, limits, minimize)
    profiles = dict(zip(run.targets, map(load_profile, spec.hardware.targets), strict=True))
    then = run.info["provenance"].get("profiles", {})
    changed = [name for name, profile in profiles.items() if then.get(name) != content_hash(profile)]
    if not changed:
        return regret_matrix(choices, minimize, as_recorded(history), history), ""
    differ = f"profiles that have changed since the run: {', '.join(changed)}"
    if _was_in_memory(spec):
        note = f"{differ}; its network was in memory, so prices are as it recorded them"
        return regret_matrix(choices, minimize, as_recorded(history), history), note
    batches = {target: about["batch"] for target, about in run.info["targets"].items()}
    today = priced_now(workload_of_run(run, given), profiles, batches, Scaling.of(spec.accuracy.ptq))
    return regret_matrix(choices, minimize, today, history), f"{differ}; prices are today's"


def regret_by_cost(
    space: str, targets: Sequence[str], minimize: str, *, batch: int = 1, max_size_bytes: float | None = None
) -> RegretMatrix:
    """What each target's cheapest assignment costs on the others; accuracy is not in it, natural groups are.

    Raises InputError on wrong names, InfeasibleError when nothing is small enough.
    """
    profiles = {profile.name: profile for profile in map(load_profile, targets)}
    found = load_space(space)
    workload = workload_of(found)
    rules = tuple(Rule(rule.layers, rule.bits) for rule in found.rules)
    groups = tuple(group.layers for group in found.groups)
    allowed = build_space(workload, rules, groups, ties=natural_groups(workload))
    tables = [cost_table(workload, profile, batch=batch) for profile in profiles.values()]
    choices = cheapest(tables, allowed, minimize, max_size_bytes)
    return regret_matrix(choices, minimize, priced_now(workload, profiles, dict.fromkeys(profiles, batch)))


def _was_in_memory(spec: Spec) -> bool:
    return spec.scope.space not in shipped_names(FOLDER) and not spec.scope.space.endswith(".toml")


def _sources(spec: Spec, directory: Path, given: Mapping[str, str], needed: Sequence[str]) -> Scope:
    """Where the parts of a run are loaded from: what came from outside haq, its space and `needed`, is given again."""
    asked = spec.scope.model_dump(exclude_none=True)
    external: list[str] = [key for key in needed if key in asked]
    if spec.scope.space not in shipped_names(FOLDER):
        external.insert(0, "space")
        if _was_in_memory(spec):
            raise InputError(
                "the run was started from Python with a model in memory", where=str(directory), got=spec.scope.space,
                expected="haq.search(...) with the same arguments and the same out",
            )  # fmt: skip
    for key in external:
        if key not in given:
            raise InputError(
                f"the run took its {key} from outside haq", where=str(directory), got=asked[key],
                expected=f"--{key} again, so that nothing is loaded because a run directory names it",
            )  # fmt: skip
    for key in given:
        if key not in external:
            raise InputError(
                f"the run has no {key} of the user's", where=str(directory), expected=f"no --{key}",
                way_out="a different search needs another --out",
            )  # fmt: skip
    return Scope.model_validate({**asked, **given})


def _metric_again(spec: Spec, directory: Path, given: str | None) -> str | None:
    """The user's metric of a run, which must be given again; None where the run has a metric of haq or of its task."""
    if spec.accuracy.is_metric_external and given is None:
        raise InputError(
            "the run took its metric from outside haq", where=str(directory), got=spec.accuracy.metric,
            expected="--metric again, so that no code is loaded because a run directory names it",
        )  # fmt: skip
    if given is not None and not spec.accuracy.is_metric_external:
        raise InputError(
            "the run has no metric of the user's", where=str(directory), got=given, expected="no --metric",
            way_out="a different search needs another --out",
        )  # fmt: skip
    return given


def search(
    model: nn.Module,
    *,
    calibration: Iterable[Inputs],
    evaluate: Callable[[nn.Module], object] | Task,
    target: str | Sequence[str],
    out: str | Path,
    validate: Callable[[nn.Module], object] | None = None,
    spec: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Search a model that is in memory; returns the run, whose files are in `out`.

    calibration: batches of inputs (tuples, or dicts of keywords). evaluate: returns one number, or one score per
    sample, which adds intervals, or a mapping from names to these, of which the first drives the search and the others
    are recorded; or a Task. Larger is better unless the spec says `{"accuracy": {"direction": "minimize"}}`; its
    `accuracy.metric` names the entry that drives. validate: the same on data that the search never sees.
    spec: further sections of the search spec, such as `{"accuracy": {"max_drop_points": 1}, "search": {"trials": 32}}`.
    The model itself stays as it is.
    """
    from haq.engine.events import silent
    from haq.nn.prepare import bundle_in_memory
    from haq.nn.user_metrics import load_metric

    bundle = bundle_in_memory(model, calibration, evaluate, validate)
    sections = {name: dict(table) for name, table in (spec or {}).items()}
    targets = [target] if isinstance(target, str) else list(target)
    sections["scope"] = {"space": bundle.name, **sections.get("scope", {})}
    sections["hardware"] = {"targets": targets, **sections.get("hardware", {})}
    resolved = spec_from(sections, where="haq.search")
    if resolved.accuracy.is_metric_external:
        bundle = replace(bundle, metric=load_metric(str(resolved.accuracy.metric)))
    return _run(bundle, ((), ()), resolved, Path(out), progress or silent)


def rewrite_outputs(run: Run) -> str:
    """Write a run's front.csv, configs, front.png and brief.txt anew; returns the brief."""
    from haq.outputs import write_outputs
    from haq.report.brief import brief
    from haq.report.files import spec_of, write_report

    write_outputs(run)
    write_report(run)
    return brief(spec_of(run), run.metric)


def _run(bundle: Bundle, shape: Shape, spec: Spec, out: Path, progress: Progress) -> Run:
    """Put the problem together and search."""
    from haq.engine.loop import run_search
    from haq.engine.problem import SearchOptions
    from haq.report.files import write_report

    problem, how = build_problem(bundle, shape, spec), spec.search
    options = SearchOptions(how.trials, how.seed, how.sampler, how.timeout_s, how.until_converged, how.storage)
    try:
        run_search(problem, options, out, progress)
    except KeyboardInterrupt:
        if (out / RUN_FILE).is_file():
            write_report(read_run(out))
        raise
    run = read_run(out)
    write_report(run)
    return run
