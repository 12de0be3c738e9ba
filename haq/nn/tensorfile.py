"""Tensors with a few facts beside them in one safetensors file: no code in it, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from haq.errors import InputError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Replace the file. about: JSON data with the file's `schema`. Raises InputError where it cannot be written."""
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A tensor of its own memory and in plain order is what the format holds.
        whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        with draft.open("wb") as file:
            file.write(save(whole, {"about": json.dumps(about)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise InputError("cannot write the file", where=str(path), got=reason, expected="a writable path") from None


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(facts, tensors) of a file of this schema; raises InputError when it is absent, damaged or another file."""
    if not path.is_file():
        raise InputError("the file does not exist", got=str(path), expected=schema)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, ValueError) as error:
        got = str(error).splitlines()[0][:120]
        raise InputError("the file cannot be read", where=str(path), got=got, expected=schema) from None
    if not isinstance(about, dict) or about.get("schema") != schema:
        got = about.get("schema", "none") if isinstance(about, dict) else type(about).__name__
        raise InputError("a file of another schema", where=str(path), got=got, expected=schema)
    return about, tensors
