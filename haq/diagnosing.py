"""The verb that diagnoses: opens a config or a run's, looks at its network, measures, and says what went wrong.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq.configfile import read_config
from haq.diagnose.costs import CostEvidence, cost_evidence
from haq.diagnose.power import check_enough, samples_to_see
from haq.errors import InputError
from haq.front import Point, front
from haq.hardware.profile import HardwareProfile, load_profile
from haq.rundir import CONFIG_FOLDER, read_run
from haq.spacefile import space_of_config
from haq.spec import spec_of_run

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.diagnose.evidence import Evidence
    from haq.diagnose.finding import Bench, Diagnosis
    from haq.nn.diagnosis.bench import TorchBench
    from haq.nn.exportable import Exportable
    from haq.precision import Precision

Report = Callable[[str, int, int], None]
"""(what is being done, how much is done, of how much); 0 of 0 where that is unknown."""


@dataclass(frozen=True)
class Asked:
    """What is diagnosed. subject: a config, or a run directory, of whose front `id` says which point.

    target: another than the config's. split, samples: what changes are judged on; samples None: as many as usual, or
    as `max_drop` takes. max_drop: in points, what has to be seen. artifact: a file of the config, whose precisions are
    read back.
    """

    subject: Path
    target: str | None = None
    id: str | None = None
    split: str = "search"
    samples: int | None = None
    max_drop: float | None = None
    artifact: Path | None = None


@dataclass(frozen=True, eq=False)
class Diagnosed:
    """config: its content, read from `file`. chosen: which point of a run this is, and why; empty for a config."""

    config: Mapping[str, Any]
    file: Path
    chosen: str
    samples: int
    evidence: Evidence
    costs: CostEvidence
    diagnosis: Diagnosis

    @property
    def title(self) -> str:
        """`f42df6631b4a of mnist_resnet18 on a100`."""
        return f"{self.config['id']} of {self.config['model']['model']} on {self.costs.profile.name}"


def diagnose_config(asked: Asked, given: Mapping[str, str], report: Report) -> Diagnosed:
    """The diagnosis of a config's network on a target.

    given: `space`, `model`, `weights`, `data`, as for `haq export`: nothing is loaded because a file names it.
    Raises InputError on a config of another network or other data (both hashes), on data that do not fit the network,
    on a network that is not finite in FP32 (and where first), and on too few samples to see the drop asked for.
    """
    if asked.max_drop is not None:
        samples_to_see(asked.max_drop)  # what is no drop is said before anything is loaded
    file, chosen = config_of(asked)
    config = read_config(file)
    profile = load_profile(str(config["target"]["name"]) if asked.target is None else asked.target)
    report("opening the network and its data", 0, 0)
    read_back = {} if asked.artifact is None else _read_back(asked.artifact, config)
    what = open_network(config, file, asked.split, given)
    costs = cost_evidence(config, what.workload, profile, read_back=read_back)

    from haq.diagnose.examine import diagnose

    report("looking at the network", 0, 0)
    bench, evidence = look_at(what, profile, Judging(asked.split, asked.samples, asked.max_drop))
    found = diagnose(bench, evidence, costs, progress=report)
    return Diagnosed(config, file, chosen, bench.samples, evidence, costs, found)


def config_of(asked: Asked) -> tuple[Path, str]:
    """The config's file, and which point of a run it is; raises InputError where that is not said, or not there.

    Of a run's front it is the point that loses most within the limit on the drop, where trouble is nearest.
    """
    if not asked.subject.is_dir():
        if asked.id is not None:
            raise InputError("a config is one point", where="--id", got=asked.id, expected="a run directory with it")
        return asked.subject, ""
    run = read_run(asked.subject)
    if asked.target is not None and asked.target in run.targets:
        target = asked.target
    elif len(run.targets) == 1:
        target = run.targets[0]
    else:
        raise InputError(
            "the run has several targets", where=str(asked.subject), got=asked.target,
            expected=f"--target, one of {', '.join(run.targets)}",
        )  # fmt: skip
    points = front(run.history.candidates, target)
    if not points:
        raise InputError("the run's front is empty", where=f"{asked.subject}, target {target}", expected="a point")
    if asked.id is not None:
        if asked.id not in {p.result.config_id for p in points}:
            known = ", ".join(p.result.config_id for p in points)
            raise InputError("no such point on the front", where=f"--id on {target}", got=asked.id, expected=known)
        return _config_file(asked.subject, asked.id), f"point {asked.id} of {len(points)} on the front of {target}"
    spec = spec_of_run(run.info["spec"], where=f"{asked.subject}/run.json")
    limits = dict(zip(run.targets, map(spec.constraints, spec.hardware.targets), strict=True))
    limit = limits[target].max_drop_points if asked.max_drop is None else asked.max_drop
    point = nearest_to(points, limit)
    of = "loses most" if limit is None else f"comes nearest to the limit of {limit:g} points"
    name = point.result.config_id
    text = f"of {len(points)} points on the front of {target}, {name} {of} (drop {point.losses[2]:+.2f})"
    return _config_file(asked.subject, name), f"{text}; --id takes another"


def nearest_to(points: tuple[Point, ...], limit: float | None) -> Point:
    """The point whose drop is nearest to the limit, either way; the largest drop where there is none."""
    if limit is None:
        return max(points, key=lambda point: point.losses[2])
    return min(points, key=lambda point: abs(point.losses[2] - limit))


def _config_file(run: Path, name: str) -> Path:
    return run / CONFIG_FOLDER / f"{name}.json"


def open_network(config: Mapping[str, Any], file: Path, split: str, given: Mapping[str, str]) -> Exportable:
    """The config's network; whether it runs is tried first, since calibration would fail on it in other words."""
    from haq.nn.bundle import load_bundle
    from haq.nn.diagnosis.sound import check_sound
    from haq.nn.exportable import exportable
    from haq.nn.tune_config import check_same

    space = space_of_config(config, given.get("space"), where=str(file))
    bundle = load_bundle(space, weights=given.get("weights"), data=given.get("data"), model=given.get("model"))
    assert bundle.task is not None, "a bundle with data has a task"
    if isinstance(config.get("model"), Mapping):  # what else is wrong with it, `exportable` says
        check_same(config, bundle, file)
    check_sound(bundle.model, bundle.task, split, bundle.example)
    return exportable(config, bundle, file)


@dataclass(frozen=True)
class Judging:
    """What changes are judged on. samples: None for as many as it takes to see `max_drop` (points), at least the usual
    number."""

    split: str
    samples: int | None
    max_drop: float | None


def look_at(what: Exportable, profile: HardwareProfile, on: Judging) -> tuple[TorchBench, Evidence]:
    """A bench for a config's network as a target runs it, and what a look at it shows.

    Raises InputError where `max_drop` cannot be seen on the samples that there are.
    """
    from haq.nn.diagnosis.bench import JUDGED, cut, open_bench
    from haq.nn.diagnosis.subject import subject_of

    assert what.task is not None, "what was opened with data has a task"
    needed = 0 if on.max_drop is None else samples_to_see(on.max_drop)
    judged = max(JUDGED, needed) if on.samples is None else on.samples
    bench, evidence = open_bench(what, subject_of(what, profile), cut(what.task, on.split, judged=judged))
    if on.max_drop is not None:
        _check_samples(bench, on.max_drop, f"split {on.split!r}")
    return bench, evidence


def _check_samples(bench: Bench, max_drop: float, where: str) -> None:
    """Raise InputError where a drop of so many points cannot be seen on the samples that the bench judges on."""
    scores = bench.fp32().scores
    if scores is not None and np.isin(scores, (0.0, 1.0)).all():
        check_enough(max_drop, len(scores), float(scores.mean()), where=where)


def _read_back(artifact: Path, config: Mapping[str, Any]) -> Mapping[str, Precision | None]:
    """What stands in the artifact; raises InputError where it is of another config's layers."""
    from haq.verify.artifact import open_artifact

    realised = open_artifact(artifact, config).realised()
    if other := [name for name in realised if name not in config["layers"]]:
        raise InputError(
            "the artifact is of another network", where=f"--artifact {artifact}", got=f"layer {other[0]}",
            expected="the layers of the config",
        )  # fmt: skip
    return realised
