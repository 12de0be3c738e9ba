"""Reads a user's checkpoint without running code from it, and fits it to a model or says what does not fit."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from haq.errors import InputError, MissingExtra

StateDict = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights beside the epoch and the optimizer."""


@runtime_checkable
class OtherKeys(Protocol):
    """A model whose published checkpoints use older names, or hold parts that it does without."""

    def own_keys(self, state: Mapping[str, Tensor]) -> StateDict:
        """The state under the names of this model."""
        ...


def load_state(path: Path) -> StateDict:
    """The tensors of a checkpoint: torch.save's file or safetensors, plain or under one of WRAPPERS.

    The `module.` prefix of a DataParallel model is taken off. Raises InputError on a file that is absent or damaged,
    holds no state dict, or would need code to be unpickled (it is never executed).
    """
    if not path.is_file():
        raise InputError("weights file does not exist", got=str(path), expected="a .pt, .pth or .safetensors file")
    raw = _load_safetensors(path) if _is_safetensors(path) else _load_pickle(path)
    for wrapper in WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(value, Tensor) for value in raw.values()):
        odd = next((k for k, v in raw.items() if not isinstance(v, Tensor)), None) if isinstance(raw, Mapping) else None
        raise InputError(
            "the checkpoint holds no state dict",
            where=str(path),
            got=type(raw).__name__ if odd is None else f"{odd}: {type(raw[odd]).__name__}",
            expected="names and tensors",
            way_out="write it with torch.save(model.state_dict(), path)",
        )
    if all(name.startswith("module.") for name in raw):
        raw = {name.removeprefix("module."): value for name, value in raw.items()}
    return dict(raw)


def fit_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load the state into the model; raises InputError that names the first keys that are missing, unexpected or
    mis-shaped, and on weights that are not finite. The model is untouched when it raises.
    """
    if isinstance(model, OtherKeys):
        state = model.own_keys(state)
    expected = model.state_dict()
    # Batch norm's step counter does not change inference; checkpoints from before torch 0.4.1 lack it.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or unexpected or misshaped:
        raise InputError(
            "the checkpoint does not fit the model",
            where=where,
            got=_difference(missing, unexpected, [f"{n} {tuple(state[n].shape)}" for n in misshaped]),
            expected=f"{len(expected)} tensors of {type(model).__name__}"
            + "".join(f", {n} {tuple(expected[n].shape)}" for n in misshaped[:1]),
            way_out="choose the space whose model they belong to, give your own with --model, or set its arguments "
            "(such as num_classes) in a space file of your own",
        )
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                "the checkpoint's weights are not finite", where=where, got=name, expected="finite numbers"
            )
    model.load_state_dict(dict(state), strict=False)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all names, formats, shapes and bytes of the state dict: 64 hex digits."""
    return state_hash(model.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """As `weights_hash`, of a state dict in any order of its names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(missing: list[str], unexpected: list[str], misshaped: list[str]) -> str:
    kinds = {"missing": missing, "unexpected": unexpected, "other shape": misshaped}
    return ", ".join(
        f"{len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for kind, names in kinds.items()
        if names
    )


def _is_safetensors(path: Path) -> bool:
    """By content: 8 bytes of header length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise MissingExtra("safetensors", "bert") from None
    try:
        return load_file(path)
    except Exception as error:  # any damage to the file is the same news to its owner
        raise InputError("the checkpoint cannot be read", where=str(path), got=str(error).splitlines()[0]) from error


def _load_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd files; ours below says what to do
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise InputError(
                "the checkpoint holds Python objects, which could run code, and is not loaded",
                where=str(path),
                expected="tensors only",
                way_out="write it again with torch.save(model.state_dict(), path)",
            ) from error
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged zip or pickle raises anything: all the same news to its owner
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        "the checkpoint cannot be read",
        where=str(path),
        got=(str(error).splitlines() or [type(error).__name__])[0][:120],
        expected="a file written by torch.save or safetensors",
    )
