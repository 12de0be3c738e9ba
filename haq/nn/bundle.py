"""Puts together what a search space file names: the model with its weights, an example input, and the task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.checkpoints import fit_state, load_state, weights_hash
from haq.nn.task import Inputs, Task, forward
from haq.nn.training import seeded
from haq.nn.user_metrics import UserMetric
from haq.references import missing_module, resolve, search_current_folder
from haq.spacefile import InputSpec, SpaceFile

BUILD_SEED = 0


@dataclass(frozen=True, eq=False)
class Bundle:
    """One network, ready to be traced and measured. model: FP32, eval mode, batch norm not folded.

    example: a batch of one. task, weights_hash and data_hash are absent when it was built without data; the model then
    is untrained, on the meta device wherever its factory allows. metric: the user's own, where one was given.
    """

    name: str
    model: nn.Module
    example: Inputs
    task: Task | None = None
    weights_hash: str | None = None
    data_hash: str | None = None
    metric: UserMetric | None = None


def load_bundle(
    space: SpaceFile,
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    model: str | None = None,
    with_data: bool = True,
) -> Bundle:
    """The bundle of a space, with the user's own parts in place of the space's.

    weights: a checkpoint, or a folder for the space's `from_folder`. data: what the space's `from_path` reads.
    model: `package.module:factory`, looked up from the current directory too, as `python -m` would; it is taken to
    return a trained network. with_data: whether weights and data are wanted; without them the answer is quick.
    Raises InputError on whatever is absent or does not fit, MissingExtra on a missing package.
    """
    weights_path, data_path = _existing(weights, "weights"), _existing(data, "data")
    name = space.name if model is None else model
    build = _builder(space, model, weights_path)
    if not with_data:
        network = _build_without_weights(build)
        return Bundle(name, network, _example_that_runs(space, network))
    # Cheap failures first: the data are opened before a network is trained on them.
    task = _task(space, data_path, weights_path)
    with seeded(BUILD_SEED):
        network = build()
    _give_weights(space, network, weights_path, trained=model is not None or space.model.trained)
    network.eval()
    return Bundle(name, network, _example_that_runs(space, network), task, weights_hash(network), task.data_hash)


def example_inputs(inputs: tuple[InputSpec, ...], device: torch.device) -> Inputs:
    """A batch of one: normal floats, integers below `high` (ones where it is not given, such as a mask)."""
    generator = torch.Generator().manual_seed(BUILD_SEED)

    def draw(spec: InputSpec) -> Tensor:
        shape = (1, *spec.shape)
        if device.type == "meta":
            return torch.empty(shape, dtype=getattr(torch, spec.dtype), device=device)
        if spec.dtype == "float32":
            return torch.randn(shape, generator=generator).to(device)
        if spec.high is None:
            return torch.ones(shape, dtype=torch.int64, device=device)
        return torch.randint(0, spec.high, shape, generator=generator).to(device)

    if inputs[0].name:
        return {spec.name: draw(spec) for spec in inputs}
    return tuple(draw(spec) for spec in inputs)


def _existing(path: str | Path | None, what: str) -> Path | None:
    if path is None:
        return None
    if not Path(path).exists():
        raise InputError(f"{what} do not exist", where=f"--{what}", got=str(path), expected="a file or folder")
    return Path(path)


def _builder(space: SpaceFile, model: str | None, weights: Path | None) -> Callable[[], nn.Module]:
    """A call without arguments that builds the network."""
    where = f"search space {space.name!r}"
    if weights is not None and weights.is_dir():
        if space.model.from_folder is None or model is not None:
            raise InputError("the weights are a folder", where=where, got=str(weights), expected="a checkpoint file")
        reference, arguments = space.model.from_folder, {"folder": weights}
    elif model is not None:
        search_current_folder()
        # Arguments belong to the factory that they are written beside.
        reference, arguments = model, ({} if space.model.factory else dict(space.model.arguments))
        where = "--model"
    elif space.model.factory is not None:
        reference, arguments = space.model.factory, dict(space.model.arguments)
    else:
        raise InputError("the space names no model", where=where, expected="--model package.module:factory")
    factory = resolve(reference, space.path.parent, space.extras, where=where)
    return lambda: _call_factory(factory, arguments, reference, space, where)


def _call_factory(
    factory: Callable[..., Any], arguments: dict[str, Any], reference: str, space: SpaceFile, where: str
) -> nn.Module:
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{reference} cannot be called with these arguments",
            where=where,
            got=", ".join(arguments) or "no arguments",
            expected=str(inspect.signature(factory)),
            way_out=str(error),
        ) from None
    network = _call(lambda: factory(**arguments), reference, space, where)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{reference} returned no model", where=where, got=type(network).__name__, expected="a torch.nn.Module"
        )
    return network.eval()


def _call(function: Callable[[], Any], reference: str, space: SpaceFile, where: str) -> Any:
    """The function's result; a package that it cannot import becomes one line."""
    try:
        return function()
    except ModuleNotFoundError as error:
        raise missing_module(error, reference, space.extras, where=where) from error


def _build_without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """The network on the meta device, or on the CPU if its factory needs real tensors."""
    try:
        with torch.device("meta"):
            network = build()
        if all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
            return network
    except InputError:
        raise
    except Exception:  # whatever a factory does with tensors that have no values; a real fault shows again below
        network = None
    with seeded(BUILD_SEED):
        return build()


def _task(space: SpaceFile, data: Path | None, weights: Path | None) -> Task:
    where = f"search space {space.name!r}"
    if data is not None:
        if space.data.from_path is None:
            raise InputError("the space reads no data of the user's", where=where, got=f"--data {data}")
        reference = space.data.from_path
        arguments: tuple[object, ...] = (space, data, weights)
    elif space.data.task is not None:
        reference = space.data.task
        arguments = (space,)
    else:
        way_out = "--data DIR" if space.data.from_path else "a task under [data] in its file"
        raise InputError("the space has no data of its own to measure accuracy on", where=where, expected=way_out)
    function = resolve(reference, space.path.parent, space.extras, where=where)
    task: Task = _call(lambda: function(*arguments), reference, space, where)
    if not task.calibration():
        raise InputError("no calibration data", where=where, got="0 batches", expected="at least one batch")
    return task


def _give_weights(space: SpaceFile, network: nn.Module, weights: Path | None, *, trained: bool) -> None:
    """Load the user's weights, or the space's own, into the network; one that comes trained keeps what it has."""
    where = f"search space {space.name!r}"
    if weights is not None:
        if weights.is_file():
            fit_state(network, load_state(weights), where=str(weights))
    elif trained:
        return
    elif space.data.weights is not None:
        function = resolve(space.data.weights, space.path.parent, space.extras, where=where)
        state = _call(lambda: function(space, network), space.data.weights, space, where)
        fit_state(network, state, where=f"{space.data.weights} of {where}")
    else:
        raise InputError(
            "the space has no trained weights of its own",
            where=where,
            expected="--weights FILE",
            way_out="if its factory returns a trained network, write trained = true under [model]",
        )


def _example_that_runs(space: SpaceFile, network: nn.Module) -> Inputs:
    """The example input, tried once; raises InputError if the model does not take it."""
    tensor = next(iter([*network.parameters(), *network.buffers()]), torch.empty(0))
    example = example_inputs(space.model.inputs, tensor.device)
    try:
        with torch.inference_mode():
            forward(network, example)
    except Exception as error:  # the user's model may raise anything on an input that it was not made for
        raise InputError(
            "the model does not run on the space's inputs",
            where=f"search space {space.name!r}",
            got=", ".join("x".join(map(str, spec.shape)) for spec in space.model.inputs),
            expected="inputs that the model takes",
            way_out=(str(error).splitlines() or [type(error).__name__])[0][:160],
        ) from error
    return example
