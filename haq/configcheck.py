"""Checks a `haq.config/v1` file whole: against its schema, within itself, and against the parameters file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haq.activations import Summary
from haq.candidate import config_id
from haq.configschema import SCHEMA, ConfigFile
from haq.errors import InputError, nearest
from haq.precision import Assignment
from haq.sketch import is_available
from haq.techniques import Stack


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a config. path: a JSON path, `$.layers['layer1.0.conv1']`."""

    path: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.path}: got {self.got}, expected {self.expected}"


def config_faults(file: Path) -> tuple[Fault, ...]:
    """All that is wrong with a config file, in the order of the schema; raises InputError if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = error.strerror if isinstance(error, OSError) else "bytes that are no UTF-8"
        raise InputError("cannot read the config", where=str(file), got=got, expected="a JSON file") from None
    return text_faults(text, file.parent)


def text_faults(text: str, folder: Path) -> tuple[Fault, ...]:
    """The same of a config's text; folder: where its parameters file lies."""
    twice: list[Fault] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            twice.append(Fault("$.." + _path((name,))[1:].lstrip("."), "the key twice", "each key once"))
        return dict(pairs)

    try:
        raw = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        return (Fault("$", f"no JSON ({error})", f"a {SCHEMA} object"),)
    if not isinstance(raw, dict):
        return (Fault("$", _shown(raw), f"a {SCHEMA} object"),)
    if raw.get("schema") != SCHEMA:
        # What follows from reading another kind of file as a config would only hide this.
        return (Fault("$.schema", _shown(raw.get("schema")), repr(SCHEMA)),)
    try:
        ConfigFile.model_validate_json(text)
    except ValidationError as error:
        return (*twice, *(_of_schema(fault) for fault in error.errors()))
    return (*twice, *_within(raw), *_parameters(raw, folder))


def _of_schema(fault: Mapping[str, Any]) -> Fault:
    path, kind = _path(fault["loc"]), fault["type"]
    if kind == "missing":
        return Fault(path, "nothing", "a value")
    if kind == "extra_forbidden":
        parent = ConfigFile.model_fields if len(fault["loc"]) == 1 else {}
        known = [field.alias or name for name, field in parent.items()]
        hint = nearest(str(fault["loc"][-1]), known)
        return Fault(path, _shown(fault["input"]), "no such key" + (f" ({hint})" if hint else ""))
    context = fault.get("ctx", {})
    if kind == "string_pattern_mismatch":
        expected = f"text like {context['pattern']}"
    elif kind in ("too_short", "string_too_short"):
        expected = f"at least {context['min_length']} in it"
    else:
        expected = fault["msg"].removeprefix("Input should be ").removeprefix("String should be ")
    return Fault(path, _shown(fault["input"]), expected)


def _within(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """What the schema cannot say: parts that must agree with each other."""
    layers = raw["layers"]
    requested = raw.get("requested_bits", layers)
    for name in requested:
        if name not in layers:
            yield Fault(_path(("requested_bits", name)), "a layer", f"one of the {len(layers)} under layers")
    for name in layers:
        if name not in requested:
            yield Fault(_path(("requested_bits", name)), "nothing", "bits for every layer")
    below: set[str] = set()
    for number, step in enumerate(raw.get("recovery", ())):
        place = ("recovery", number, "layers")
        for name in step["layers"]:
            if name not in layers:
                yield Fault(_path((*place, name)), "a layer", f"one of the {len(layers)} under layers")
        for name in sorted(below - step["layers"].keys()):
            yield Fault(_path((*place, name)), "nothing", "a precision: each step only raises more")
        below |= step["layers"].keys()
    for number, fallback in enumerate(raw.get("fallbacks", ())):
        if fallback["layer"] not in layers:
            yield Fault(_path(("fallbacks", number, "layer")), repr(fallback["layer"]), "a layer under layers")
        elif fallback["executed"] != layers[fallback["layer"]]:
            at = _path(("fallbacks", number, "executed"))
            yield Fault(at, repr(fallback["executed"]), f"{layers[fallback['layer']]!r} as under layers")
    try:
        Stack.of(raw.get("quantization", {}).get("ptq", ()))
    except InputError as error:
        yield Fault("$.quantization.ptq", _shown(raw["quantization"]["ptq"]), str(error))
    for name, metric in raw["metrics"].items():
        if name.endswith("_bytes") and (metric["value"] < 0 or metric["value"] != int(metric["value"])):
            yield Fault(_path(("metrics", name, "value")), _shown(metric["value"]), "a whole number of bytes")
    yield from _activations(raw)
    named = raw["id"].removesuffix("-tuned").removesuffix("-repaired")
    expected = config_id(Assignment.from_json(layers), raw["target"]["name"])
    if _is_content_hash(named) and named != expected:
        yield Fault("$.id", repr(raw["id"]), f"{expected!r}, which names these layers on this target")


def _activations(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Summaries are of layers that are there, and hold sketches where the library is there to read them."""
    for key, summary in raw.get("activations", {}).items():
        if key.rpartition(":")[0] not in raw["layers"]:
            yield Fault(_path(("activations", key)), repr(key), "LAYER:INDEX of a layer under layers")
        elif is_available():
            try:
                Summary.from_json(summary, key)
            except InputError as error:
                yield Fault(_path(("activations", key)), str(error), "sketches")


def _is_content_hash(text: str) -> bool:
    return len(text) == 12 and set(text) <= set("0123456789abcdef")


def _parameters(raw: Mapping[str, Any], folder: Path) -> Iterator[Fault]:
    """The file with the tuned numbers: both keys or none, there, and the one that was written with the config."""
    if ("parameters" in raw) != ("parameters_sha256" in raw):
        missing = "parameters_sha256" if "parameters" in raw else "parameters"
        yield Fault(f"$.{missing}", "nothing", "both parameters and parameters_sha256, or neither")
    elif "parameters" in raw:
        file = folder / raw["parameters"]
        if not file.is_file():
            yield Fault("$.parameters", repr(raw["parameters"]), f"a file in {folder}")
        elif (got := hashlib.sha256(file.read_bytes()).hexdigest()) != raw["parameters_sha256"]:
            yield Fault("$.parameters_sha256", f"{raw['parameters_sha256']!r}", f"{got!r}, of {file}")


def _path(location: tuple[int | str, ...]) -> str:
    """A JSON path (RFC 9535) with dots where the names allow them."""
    steps = (
        f"[{part}]" if isinstance(part, int) else f".{part}" if part.isidentifier() else f"[{part!r}]"
        for part in location
    )
    return "$" + "".join(steps)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
