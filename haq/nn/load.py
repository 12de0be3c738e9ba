"""From a config and the network in memory that it is of to the quantized network, ready to run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq.config import Config
from haq.errors import InputError
from haq.nn.bundle import example_inputs
from haq.nn.calibrate import calibrate, check_data
from haq.nn.checkpoints import weights_hash
from haq.nn.exportable import how_quantized
from haq.nn.fold import fold_batch_norm
from haq.nn.ptq.structure import restructured
from haq.nn.simulate import apply
from haq.nn.smoothed import with_smoothing
from haq.nn.task import Inputs, first_samples
from haq.nn.trace import trace
from haq.nn.tuned import build_tuned, read_tuned
from haq.resources import shipped_names
from haq.spacefile import FOLDER, load_space
from haq.techniques import STRUCTURE
from haq.workload import Workload


def load(
    config: Config | str | Path | Mapping[str, Any],
    model: nn.Module,
    *,
    calibration: Iterable[Inputs] | None = None,
    example: Inputs | None = None,
) -> nn.Module:
    """The quantized network of a config: it computes what `haq search` measured, and shares no tensor with `model`.

    config: a `haq.Config`, a path, or JSON data (whose parameters file lies in the current folder). model: the network
    that the config is of, as it was trained; it stays as it is. calibration: batches of inputs, tuples or dicts of
    keywords; needed unless the config has a parameters file, and the same as in the search for the same numbers.
    example: one batch to trace the network with; the first of `calibration`, or an input as the shipped space says,
    unless given.

    Raises InputError on a config that does not validate, on other weights (naming both hashes), on layers that are not
    the network's, and where data is needed and absent.
    """
    chosen = Config.opened(config)
    content, batches = chosen.content, tuple(calibration or ())
    _check_weights(chosen, model)
    folded = fold_batch_norm(model, _example(chosen, model, batches, example))
    workload = trace(folded, _example(chosen, folded, batches, example), name=content["model"]["model"])
    _check_layers(chosen, workload)
    how = how_quantized(content)
    structural = [name for name in how.stack.names if name in STRUCTURE]
    if not batches and (chosen.parameters is None or structural):
        raise InputError(
            "the config needs calibration data", where=str(chosen),
            got=f"the technique {structural[0]}, which needs data" if chosen.parameters else "no parameters file",
            expected="calibration=[batches of inputs]", way_out="as the search was calibrated",
        )  # fmt: skip
    if batches:
        check_data(batches, workload)
    changed = restructured(folded, workload, how.stack, batches)
    if chosen.parameters is not None:
        tuned = read_tuned(chosen.folder / "config", content, workload, changed)
        smoothed = with_smoothing(changed, tuned.smoothing)
        return copy.deepcopy(build_tuned(smoothed, workload, chosen.layers, tuned))
    ranges = calibrate(changed, workload, batches, observer=how.observer, stack=how.stack)
    return apply(changed, workload, chosen.layers, ranges)


def _check_weights(config: Config, model: nn.Module) -> None:
    there, here = config.content["model"].get("weights_hash"), weights_hash(model)
    if there is not None and there != here:
        raise InputError(
            "the network's weights are not those of the config: weights_hash differs", where=str(config), got=here,
            expected=there, way_out="give the network as it was searched, before anything is folded or quantized",
        )  # fmt: skip


def _check_layers(config: Config, workload: Workload) -> None:
    names, known = tuple(config.layers), set(workload.layer_names)
    odd = [name for name in names if name not in known] or [n for n in workload.layer_names if n not in names]
    if odd:
        raise InputError(
            "the config's layers are not the network's", where=str(config), got=f"{len(names)} layers, not {odd[0]!r}"
            if odd[0] in known else odd[0], expected=f"the {len(known)} layers of {workload.name}",
        )  # fmt: skip


def _example(config: Config, model: nn.Module, batches: tuple[Inputs, ...], example: Inputs | None) -> Inputs:
    """A batch of one to trace with."""
    if example is not None or batches:
        return first_samples(example if example is not None else batches[0], 1)
    name = config.content["model"]["model"]
    if name not in shipped_names(FOLDER):
        raise InputError("no input to trace the network with", where=str(config), got=name, expected="example=inputs")
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return example_inputs(load_space(name).model.inputs, device)
