"""The config of one point, `haq.config/v1` JSON: what a deployment needs to know about one assignment on one target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haq.accuracy import Measurement
from haq.configschema import SCHEMA
from haq.errors import InputError
from haq.front import Point
from haq.precision import Assignment
from haq.quality import WORST_CLASS
from haq.textfile import write_file

ONLY_MSE = ("bn_fold", "mse")
"""What every run did before a spec could name techniques."""


def config_json(point: Point, run: Mapping[str, Any], validation: Measurement | None) -> dict[str, Any]:
    """The config as JSON data. run: the contents of `run.json`; validation: on the held-out split, if measured."""
    result, provenance = point.result, run["provenance"]
    assert result.measurement is not None, "only measured candidates become configs"
    about_metric = {key: provenance[key] for key in ("metric", "direction") if key in provenance}
    metrics = {**_measured(result.measurement, about_metric)}
    if validation is not None:
        metrics |= {f"{name}_validation": entry for name, entry in _measured(validation, about_metric).items()}
    about = run["targets"].get(result.target, {})
    trust = {key: about[key] for key in ("confidence", "latency_spread") if key in about}
    for name, value in sorted(result.costs.items()):
        metrics[name] = {"value": value, "kind": "modelled", **(trust if name == "latency_ms" else {})}
    return {
        "schema": SCHEMA,
        "id": result.config_id,
        "model": {key: provenance[key] for key in ("model", "weights_hash") if key in provenance},
        "target": {"name": result.target, **about},
        "layers": result.executed.to_json(),
        "requested_bits": point.candidate.requested.to_json(),
        "quantization": quantization(run["spec"]),
        "metrics": metrics,
        "fallbacks": [fallback.to_json() for fallback in result.fallbacks],
        "provenance": {
            **{key: value for key, value in provenance.items() if key not in ("model", "weights_hash")},
            "candidate": point.candidate.number,
            "origin": point.candidate.origin,
            "search": run["search"],
            "versions": run["versions"],
        },
    }


def quantization(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How a run quantizes: the techniques and the observer of its spec. Runs of before techniques had neither key."""
    accuracy = spec.get("accuracy", {})
    return {"ptq": accuracy.get("ptq", list(ONLY_MSE)), "observer": accuracy.get("observer", "mse")}


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a config where it did not exist or is replaced whole."""
    write_file(path, json.dumps(config, indent=2) + "\n", "config")


def read_config(path: Path) -> dict[str, Any]:
    """A config file's content; raises InputError when it is absent, no JSON or another schema."""
    return checked_config(read_json(path, f"a {SCHEMA} file"), path)


def read_json(path: Path, expected: str) -> Any:
    """The JSON in a file; raises InputError when it is absent, or no JSON where `expected` should be."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError("cannot read the config", where=str(path), got=error.strerror, expected="a file") from None
    except ValueError:
        raise InputError("config is not JSON", where=str(path), expected=expected) from None


def checked_config(raw: Any, path: Path) -> dict[str, Any]:
    """`raw`, read from `path`, if it is a config of this schema; raises InputError otherwise."""
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        got = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise InputError("not a haq config", where=str(path), got=got, expected=SCHEMA)
    return raw


def numbers_to_copy(source: Path, target: Path, sha256: str) -> bytes | None:
    """The parameters of a config that its copy needs beside it; None where they lie there already.

    sha256: theirs, as the config says. Raises InputError when they are absent, not its own, or would overwrite others.
    """
    try:
        numbers = source.read_bytes()
    except OSError as error:
        raise InputError("cannot read the parameters", where=str(source), got=error.strerror) from None
    if hashlib.sha256(numbers).hexdigest() != sha256:
        raise InputError(
            "the parameters are not those of the config", where=str(source),
            expected="the file that was written with it",
        )  # fmt: skip
    if not target.is_file():
        return numbers
    if hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return None
    raise InputError(
        "other parameters lie where those of the config go", where=str(target), expected=f"no file, or {sha256}",
        way_out="write into another folder",
    )  # fmt: skip


def executed_assignment(config: Mapping[str, Any]) -> Assignment:
    """What the config's layers execute."""
    return Assignment.from_json(config["layers"])


def measured(measurement: Measurement) -> dict[str, Any]:
    """A measurement of accuracy as one of a config's metrics."""
    entry: dict[str, Any] = _measured(measurement, {})["accuracy"]
    return entry


def _measured(measurement: Measurement, about: Mapping[str, str]) -> dict[str, Any]:
    """Name -> what was measured: the metric that drives the search, under "accuracy", and all others with a value."""
    raw = measurement.to_json()
    report = raw.pop("quality", {"metrics": {}})
    main = {"value": measurement.accuracy, "kind": "measured", "direction": "maximize", **about, **raw}
    entries = {"accuracy": main}
    for name, figure in report["metrics"].items():
        if "value" in figure and name not in entries:
            entries[name] = {"kind": "measured", "split": measurement.split, **figure}
    if "classes" in report and WORST_CLASS in entries:
        entries[WORST_CLASS]["classes"] = report["classes"]
    if "not_finite_samples" in report:
        main["not_finite_samples"] = report["not_finite_samples"]
    return entries
