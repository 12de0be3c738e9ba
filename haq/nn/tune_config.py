"""From a config to a finetuned one: trains its network, measures what was frozen, writes the config and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from haq.accuracy import compare
from haq.configfile import executed_assignment, measured, read_config, write_config
from haq.errors import InputError
from haq.history import SEARCH, VALIDATION
from haq.nn.bundle import Bundle
from haq.nn.calibrate import calibrate
from haq.nn.finetune import EpochDone, Finetuned, Job, Settings, Started, TuneOptions, finetune
from haq.nn.fold import fold_batch_norm
from haq.nn.observers import DEFAULT_OBSERVER
from haq.nn.task import CallableTask
from haq.nn.trace import trace
from haq.nn.training import BatchSource
from haq.nn.tuned import Tuned, build_tuned, file_hash, write_tuned
from haq.precision import Precision
from haq.rundir import versions
from haq.techniques import DEFAULT_STACK, Stack

METRICS = {SEARCH: "accuracy", VALIDATION: "accuracy_validation"}
"""Split -> its key among a config's metrics."""


@dataclass(frozen=True)
class Files:
    """config: what is finetuned. out: the config that is written; its numbers and the checkpoint lie beside it."""

    config: Path
    out: Path

    @property
    def parameters(self) -> Path:
        return self.out.with_suffix(".safetensors")

    @property
    def checkpoint(self) -> Path:
        return self.out.with_suffix(".checkpoint.safetensors")


def readable_config(files: Files) -> dict[str, Any]:
    """The config, with what finetuning needs in it; raises InputError otherwise, or if `out` cannot be written to."""
    raw, where = read_config(files.config), str(files.config)
    if files.out.suffix != ".json" or files.out.resolve() == files.config.resolve():
        raise InputError("not where a config can go", where="--out", got=str(files.out), expected="a new .json file")
    if not isinstance(raw.get("layers"), dict) or not isinstance(raw.get("model"), dict):
        raise InputError("the config names no model or no layers", where=where, expected="a config of `haq search`")
    if "parameters" in raw:
        raise InputError(
            "the config is finetuned already", where=where, got=raw["parameters"],
            expected="the config that it came from, with more --epochs",
        )  # fmt: skip
    if odd := [name for name, choice in executed_assignment(raw).entries if not isinstance(choice, Precision)]:
        raise InputError(
            "a layer's precision is not said", where=where, got=f"{odd[0]}: {raw['layers'][odd[0]]}",
            expected="formats such as int4/int8",
        )  # fmt: skip
    return raw


def check_same(raw: Mapping[str, Any], bundle: Bundle, where: Path) -> None:
    """Raise InputError if the network or the data are not those of the config."""
    there = {"weights_hash": raw["model"].get("weights_hash"), "data_hash": raw.get("provenance", {}).get("data_hash")}
    for key, flags in (("weights_hash", "--model and --weights"), ("data_hash", "--data")):
        here = getattr(bundle, key)
        if there[key] is not None and there[key] != here:
            what = "network" if key == "weights_hash" else "data"
            raise InputError(
                f"the {what} are not those of the config: {key} differs", where=str(where), got=here,
                expected=there[key], way_out=f"give {flags} as the search had them",
            )  # fmt: skip


def finetune_config(
    files: Files,
    bundle: Bundle,
    batches: BatchSource,
    options: TuneOptions,
    report: Callable[[Started | EpochDone], None],
) -> dict[str, Any]:
    """The finetuned config, which is written together with its numbers; the checkpoint is then gone.

    Raises InputError where the config does not fit the network, and as `finetune` does.
    """
    raw, task = readable_config(files), bundle.task
    assert task is not None, "a bundle without a task cannot be measured"
    check_same(raw, bundle, files.config)
    model = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(model, bundle.example, name=bundle.name)
    calibration = calibrate(model, workload, task.calibration(), **_how(raw))
    job = Job(model, workload, executed_assignment(raw), calibration, task, batches)
    identity = {
        "config": file_hash(files.config),
        "weights": bundle.weights_hash,
        "data": bundle.data_hash,
        "steps": len(batches),
        **asdict(options),
    }
    found = finetune(job, options, Settings(files.checkpoint, identity, report))
    provenance = {
        **asdict(options),
        "config": raw.get("id"),
        "config_sha256": identity["config"],
        "epoch_kept": found.epoch,
        "steps": found.steps,
        "steps_per_epoch": len(batches),
        "seconds": round(found.seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    metrics, before = _measurements(job, found)
    result = {
        **raw,
        "id": f"{raw.get('id', files.config.stem)}-tuned",
        "parameters": files.parameters.name,
        "parameters_sha256": write_tuned(files.parameters, found.tuned),
        "metrics": {**raw.get("metrics", {}), **metrics},
        "provenance": {**raw.get("provenance", {}), "finetune": {**provenance, "before": before}},
    }
    write_config(files.out, result)
    files.checkpoint.unlink(missing_ok=True)
    return result


def _how(raw: Mapping[str, Any]) -> dict[str, Any]:
    """How the config was quantized, as `calibrate` takes it: haq's own way where it does not say.

    Structural techniques are left out: training starts from the network as it is.
    """
    said = raw.get("quantization", {})
    stack = Stack.of(said.get("ptq", DEFAULT_STACK)).without_structure()
    return {"stack": stack, "observer": said.get("observer", DEFAULT_OBSERVER)}


def _measurements(job: Job, found: Finetuned) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of the finetuned network and of the one it came from, on every split, against FP32."""
    task = job.task
    # A user's function that knows one data set has nothing to validate on.
    held_out = not isinstance(task, CallableTask) or task.validate is not None
    after, before = {}, {}
    for split in (SEARCH, VALIDATION) if held_out else (SEARCH,):
        fp32 = task.scores(job.model, split)

        def of(tuned: Tuned, split: str = split, fp32: Any = fp32) -> dict[str, Any]:
            model = build_tuned(job.model, job.workload, job.executed, tuned)
            return measured(compare(fp32, task.scores(model, split), split))

        after[METRICS[split]], before[METRICS[split]] = of(found.tuned), of(found.start)
    return after, before
