"""A user's own metric: a function of outputs and labels, or an object that follows torchmetrics' protocol."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from haq.errors import InputError
from haq.nn.metrics import Outputs
from haq.quality import Direction
from haq.references import check_reference, find, search_current_folder

WHERE = "--metric"
PROTOCOL = ("update", "compute", "reset")


@dataclass(frozen=True, eq=False)
class UserMetric:
    """value: outputs of a whole split -> a number, one score per sample, or a mapping from names to them.

    direction: what the metric says of itself, where it does. source_hash: of a function's source text, where there is
    one, so that a resumed run is not measured by a function that was edited meanwhile.
    """

    value: Callable[[Outputs], object]
    direction: Direction | None = None
    source_hash: str | None = None


def load_metric(reference: str) -> UserMetric:
    """The metric at `package.module:object`, looked up from the current directory too.

    A function is called as `function(outputs, labels)` on the whole split. A torchmetrics metric, or any object with
    `update`, `compute` and `reset`, is updated batch by batch; its class will do where it takes no arguments. Raises
    InputError when it cannot be found or is neither.
    """
    try:
        check_reference(reference)
    except ValueError as error:
        raise InputError(
            "not a metric", where=WHERE, got=reference, expected=str(error).partition("expected ")[2]
        ) from None
    search_current_folder()
    found = find(reference, Path.cwd(), where=WHERE)
    if isinstance(found, type):
        found = _made(found, reference)
    if all(callable(getattr(found, name, None)) for name in PROTOCOL):
        direction = _stated_direction(found, reference)
        return UserMetric(lambda outputs: _guarded(lambda: _accumulated(found, outputs), reference), direction)
    if callable(found):
        function = cast("Callable[[Any, Any], object]", found)
        _check_takes_two(function, reference)
        return UserMetric(
            lambda outputs: _guarded(lambda: _called(function, outputs, reference), reference),
            None,
            _source_hash(found),
        )
    raise InputError(
        "not a metric", where=WHERE, got=f"{reference} of type {type(found).__name__}",
        expected="a function(outputs, labels), or an object with update, compute and reset",
    )  # fmt: skip


def _made(cls: type, reference: str) -> object:
    if not all(callable(getattr(cls, name, None)) for name in PROTOCOL):
        raise InputError(
            "the class is no metric", where=WHERE, got=reference, expected="one with update, compute and reset"
        )
    try:
        made: object = cls()
    except TypeError as error:
        raise InputError(
            "the class takes arguments", where=WHERE, got=reference, expected="an object made from it",
            way_out=f"write `metric = {cls.__name__}(...)` in a module of yours and name that; {error}",
        ) from None  # fmt: skip
    return made


def _stated_direction(metric: object, reference: str) -> Direction | None:
    """From torchmetrics' `higher_is_better`, which is a bool, or None where the metric does not say."""
    higher = getattr(metric, "higher_is_better", None)
    if higher is not None and not isinstance(higher, bool):
        raise InputError(
            "higher_is_better is no bool", where=f"{WHERE} {reference}", got=higher, expected="True, False"
        )
    if higher is None:
        return None
    return "maximize" if higher else "minimize"


def _accumulated(metric: Any, outputs: Outputs) -> object:
    """What the object computes over the split, with an empty state before and after."""
    metric.reset()
    with torch.no_grad():
        for part, labels in zip(outputs.parts, outputs.labels, strict=True):
            metric.update(part, labels)
        found: object = metric.compute()
    metric.reset()
    shape = getattr(found, "shape", ())
    if len(shape) and tuple(shape) != (1,):
        # One number per class must not be taken for one score per sample.
        raise InputError(
            "the metric computes several numbers", where=WHERE, got=tuple(shape), expected="one number",
            way_out="average over classes, as with average='macro'",
        )  # fmt: skip
    return found.reshape(()) if len(shape) else found  # type: ignore[attr-defined]


def _called(function: Callable[[Any, Any], object], outputs: Outputs, reference: str) -> object:
    shapes = {tuple(part.shape[1:]) for part in outputs.parts}
    if len(shapes) > 1:
        raise InputError(
            "the batches' outputs differ in shape, so a function cannot get them as one", where=f"{WHERE} {reference}",
            got=" and ".join(map(str, sorted(shapes)[:3])), expected="an object with update, compute and reset",
        )  # fmt: skip
    with torch.no_grad():
        return function(torch.cat(outputs.parts), torch.cat(outputs.labels))


def _check_takes_two(function: Callable[[Any, Any], object], reference: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some built-ins do not tell
    try:
        signature.bind(None, None)
    except TypeError:
        raise InputError(
            "the function cannot be called as a metric", where=WHERE, got=f"{reference}{signature}",
            expected="a function(outputs, labels)",
        ) from None  # fmt: skip


def _guarded(compute: Callable[[], object], reference: str) -> object:
    """The value; what the user's code raises becomes one line that says where."""
    try:
        return compute()
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"the metric failed in {Path(place.filename).name}, line {place.lineno}", where=f"{WHERE} {reference}",
            got=f"{type(error).__name__}: {error}"[:160], expected="a number, or one score per sample",
        ) from error  # fmt: skip


def _source_hash(function: object) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(cast("Any", function)).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None  # a built-in, or a callable object
