"""The verb that verifies: opens a config or an artifact, runs both it and the simulation, judges, and records.

torch and the runtimes are imported inside, so that importing this module stays light.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haq.accuracy import compare
from haq.config import Config
from haq.configfile import write_config
from haq.deployments import Deployment
from haq.errors import InputError, lookup
from haq.outputs import write_outputs
from haq.rundir import DEPLOYED_FOLDER, Run, continued_run, read_run
from haq.spacefile import space_of_config

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.nn.exportable import Exportable
    from haq.verify.evidence import Evidence
    from haq.verify.gate import Gate, Limits

DEFAULT_FORMAT = "onnx-qdq"
TUNED = "-tuned"
"""What `haq finetune` appends to the id of the config that it starts from."""


@dataclass(frozen=True)
class Asked:
    """What is verified. subject: a config, or an artifact that holds one.

    artifact: of a config, where one lies already; else it is exported to a temporary file in `format`. split, samples:
    what accuracy is compared on; samples None: the whole split. repeats: timed inferences.
    """

    subject: Path
    artifact: Path | None = None
    format: str = DEFAULT_FORMAT
    split: str = "search"
    samples: int | None = None
    repeats: int = 30


@dataclass(frozen=True, eq=False)
class Verified:
    """gate: the verdict. evidence: absent where the artifact could not be run. sha256: of the artifact."""

    config: Mapping[str, Any]
    format: str
    gate: Gate
    sha256: str
    evidence: Evidence | None = None
    runtime: str = ""
    machine: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config["id"], "target": self.config["target"]["name"], "format": self.format,
            "artifact_sha256": self.sha256, **self.gate.to_json(),
        }  # fmt: skip


def verify(asked: Asked, given: Mapping[str, str], limits: Limits) -> Verified:
    """The verdict on an artifact, run in its real runtime beside the simulation.

    given: `space`, `model`, `weights`, `data`, as for `haq export`: nothing is loaded because a file names it.
    Raises InputError on wrong input (a config of other weights names both hashes) and CheckFailed on an artifact from
    which no config can be read; an artifact that cannot be run, or that is of another config, fails the gate.
    """
    from haq.nn.bundle import load_bundle
    from haq.nn.exportable import exportable
    from haq.verify.artifact import RUNTIMES, Broken, TellsMore, open_artifact, runtime_of
    from haq.verify.gate import failed, judge
    from haq.verify.measuring import How, measure

    is_config = asked.subject.suffix == ".json"
    if is_config:
        config = Config.load(asked.subject)
        lookup(RUNTIMES, asked.format, "format that can be run")
    else:
        if asked.artifact is not None:
            raise InputError("an artifact given twice", where="--artifact", got=str(asked.artifact),
                             expected="a config (.json) as the argument")  # fmt: skip
        fmt = runtime_of(asked.subject)
        config = Config.of(RUNTIMES[fmt].embedded_config(_existing(asked.subject)), asked.subject.parent)
    content = config.content
    written = asked.artifact if is_config else asked.subject
    fmt = asked.format if written is None else runtime_of(written)
    if is_config and written is not None and (other := _other_config(written, fmt, content)):
        return Verified(content, fmt, failed(other), _sha256(written))
    space = space_of_config(content, given.get("space"), where=str(asked.subject))
    bundle = load_bundle(space, weights=given.get("weights"), data=given.get("data"), model=given.get("model"))
    what = exportable(content, bundle, asked.subject)
    with _written(written, what, fmt) as file:
        try:
            artifact = open_artifact(file, content, fmt)
            evidence = measure(artifact, what, How(asked.split, asked.repeats, asked.samples))
        except Broken as error:
            return Verified(content, fmt, failed(str(error)), _sha256(file))
        tells = (artifact.runtime, artifact.machine) if isinstance(artifact, TellsMore) else (fmt, "unknown")
        return Verified(content, fmt, judge(evidence, limits), _sha256(file), evidence, *tells)


def _other_config(artifact: Path, fmt: str, content: Mapping[str, Any]) -> str:
    """How the config inside an artifact is another than the given one, in one sentence; empty if it is the same."""
    from haq.verify.artifact import RUNTIMES, Broken

    try:
        inside = RUNTIMES[fmt].embedded_config(_existing(artifact))
    except Broken as error:
        return str(error)
    except InputError:
        return ""  # an artifact of another tool holds no config; its layers and numbers are compared all the same
    there, here = inside["model"].get("weights_hash"), content["model"].get("weights_hash")
    if there != here:
        return f"the artifact is of another network: weights_hash {there} in it, {here} in the config"
    for key in ("layers", "target", "parameters_sha256", "quantization"):
        if inside.get(key) != content.get(key):
            return f"the artifact is of config {inside['id']}, not of {content['id']}: {key} differ"
    return ""


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise InputError("no such artifact", where=str(file), expected="a file that `haq export` wrote")
    return file


@contextmanager
def _written(file: Path | None, what: Exportable, fmt: str) -> Iterator[Path]:
    """The artifact; where there is none yet, it is exported to a folder that goes when it was used."""
    if file is not None:
        yield file
        return
    from haq.export import EXPORTERS
    from haq.verify.artifact import RUNTIMES

    with tempfile.TemporaryDirectory(prefix="haq-") as folder:
        path = Path(folder) / f"model{RUNTIMES[fmt].suffix}"
        lookup(EXPORTERS, fmt, "format")(what, path, {})
        yield path


def record(verified: Verified, directory: Path) -> Run:
    """Append what the artifact measured to the run that its config is from; returns the run with it.

    `front.csv` then shows it beside the modelled figures, and `haq calibrate` takes it as a measurement. Raises
    InputError where nothing was measured, where only part of a split was, and where the config is of another run.
    """
    run, found = read_run(directory), verified.evidence
    if found is None or found.latency is None:
        raise InputError("nothing was measured, so nothing is recorded", where=str(directory), expected="an artifact "
                         "that runs")  # fmt: skip
    content, baseline = verified.config, run.history.baseline
    base = str(content["id"]).removesuffix(TUNED)
    ids = {result.config_id for candidate in run.history.candidates for result in candidate.results}
    if base not in ids or baseline is None:
        raise InputError("the config is of another run", where=f"--record {directory}", got=base,
                         expected=f"one of its {len(ids)} candidates")  # fmt: skip
    if found.answers.metric.name != run.metric.name:
        raise InputError(
            "the run is driven by another metric", where=f"--record {directory}", got=found.answers.metric.name,
            expected=run.metric.name,
        )  # fmt: skip
    split = found.answers.split
    used, whole = np.size(found.answers.artifact), np.size(baseline.scores.get(split, ()))
    if used != whole:
        raise InputError(
            "only a whole split is recorded, to be compared with FP32 sample by sample", where=f"split {split!r}",
            got=f"{used} samples", expected=f"the run's {whole}", way_out="leave --samples out",
        )  # fmt: skip
    deployment = Deployment(
        config=str(content["id"]), target=str(content["target"]["name"]), format=verified.format,
        runtime=verified.runtime, machine=verified.machine, artifact_sha256=verified.sha256,
        initializer_bytes=found.initializer_bytes, file_bytes=found.file_bytes, batch=found.latency.batch,
        latency_ms=round(found.latency.median_ms, 6), simulated=float(np.mean(found.answers.simulated)),
        measurement=compare(baseline.scores[split], found.answers.artifact, split, run.metric.direction),
        passed=verified.gate.passed, modelled_ms=found.latency.modelled_ms,
    )  # fmt: skip
    with continued_run(directory) as opened:
        write_config(directory / DEPLOYED_FOLDER / f"{content['id']}.json", content)
        opened.writer.append("deployment", deployment.to_json())
        after = read_run(directory)
        write_outputs(after)
    return after


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
