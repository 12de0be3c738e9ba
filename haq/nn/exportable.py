"""Opens a config as what is exported: its network, restructured and folded, with every number that is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from haq.configfile import executed_assignment, read_config
from haq.errors import InputError
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.calibrate import Calibration, Operand, calibrate
from haq.nn.fold import fold_batch_norm
from haq.nn.lsq import Stored
from haq.nn.observers import DEFAULT_OBSERVER
from haq.nn.prepare import Quantization, quantizable
from haq.nn.ptq.structure import restructured
from haq.nn.quantizers import ActivationQuantizer
from haq.nn.simulate import Simulator
from haq.nn.smoothed import with_smoothing
from haq.nn.task import Inputs, Task
from haq.nn.trace import trace
from haq.nn.tune_config import check_same
from haq.nn.tuned import Tuned, bias_key, build_tuned, check_ties, operands, part, read_tuned
from haq.precision import Assignment, Precision
from haq.resources import cache_dir
from haq.spacefile import space_of_config
from haq.techniques import DEFAULT_STACK, Stack
from haq.workload import Workload


@dataclass(frozen=True, eq=False)
class Exportable:
    """One config with its network, ready to be written in any format.

    config: the content of a haq.config/v1 file. model: FP32 in eval mode, batch norm folded, restructured as the
    config's techniques say. executed: layer -> Precision. numbers: all that is deployed of the layers; what they leave
    out (norms, positions) is the model's. example: a batch of one. task: the data, where there are any. calibration:
    what the numbers were made from, where they were made now; absent where they come from a file.
    """

    config: Mapping[str, Any]
    model: nn.Module
    workload: Workload
    executed: Assignment
    numbers: Tuned
    example: Inputs
    task: Task | None
    calibration: Calibration | None = None

    def simulated(self) -> nn.Module:
        """A model that computes what haq measured."""
        return build_tuned(self.model, self.workload, self.executed, self.numbers)


def load_exportable(config: Path, given: Mapping[str, str]) -> Exportable:
    """What a config file describes, its network loaded with weights and data.

    given: `space`, `model`, `weights`, `data`. Only a shipped space is loaded because the config names it; whatever
    came from outside must be given again. Raises InputError on a config of other weights or data, naming both hashes,
    and on one that does not fit the network.
    """
    raw = read_config(config)
    space = space_of_config(raw, given.get("space"), where=str(config))
    bundle = load_bundle(space, weights=given.get("weights"), data=given.get("data"), model=given.get("model"))
    return exportable(raw, bundle, config)


def exportable(raw: Mapping[str, Any], bundle: Bundle, config: Path) -> Exportable:
    """What a config's content describes on its network. config: where it was read; its numbers may lie beside it.

    Numbers come from that file if the config names one, else they are made as the config's `quantization` says, which
    is how the search made them. Raises InputError as `load_exportable` does.
    """
    executed = executable(raw, str(config))
    check_same(raw, bundle, config)
    model = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(model, bundle.example, name=bundle.name)
    check_ties(workload, executed)
    how, calibration = how_quantized(raw), None
    if "parameters" in raw:
        batches = () if bundle.task is None else tuple(bundle.task.calibration())
        model = restructured(model, workload, how.stack, batches)
        numbers = read_tuned(config, raw, workload, model)
        model = with_smoothing(model, numbers.smoothing)
    else:
        assert bundle.task is not None, "a bundle without a task cannot be calibrated"
        simulator = quantizable(model, workload, tuple(bundle.task.calibration()), how)
        model, numbers, calibration = simulator.model, numbers_of(simulator, executed), simulator.calibration
    return Exportable(raw, model.eval(), workload, executed, numbers, bundle.example, bundle.task, calibration)


def calibration_of(what: Exportable) -> Calibration:
    """What its data calibrate it to: as its numbers were made, or anew where they come from a file."""
    assert what.task is not None, "a network without data cannot be calibrated"
    how, batches = how_quantized(what.config), tuple(what.task.calibration())
    return what.calibration or calibrate(what.model, what.workload, batches, observer=how.observer, stack=how.stack)


def executable(raw: Mapping[str, Any], where: str) -> Assignment:
    """What the config's layers execute; raises InputError where it does not say a layer's formats."""
    if not isinstance(raw.get("layers"), dict) or not isinstance(raw.get("model"), dict):
        raise InputError("the config names no model or no layers", where=where, expected="a config of `haq search`")
    executed = executed_assignment(raw)
    for name, choice in executed.entries:
        if not isinstance(choice, Precision):
            raise InputError(
                "a layer's precision is not said", where=where, got=f"{name}: {choice}",
                expected="formats such as int4/int8",
            )  # fmt: skip
    return executed


def how_quantized(raw: Mapping[str, Any]) -> Quantization:
    """How the config's network was quantized: haq's own way where it does not say.

    A finetuned network was trained as it is: structural techniques took no part.
    """
    said = raw.get("quantization", {})
    stack = Stack.of(said.get("ptq", DEFAULT_STACK))
    if "finetune" in raw.get("provenance", {}):
        stack = stack.without_structure()
    return Quantization(stack, said.get("observer", DEFAULT_OBSERVER), cache_dir() / "ptq")


def numbers_of(simulator: Simulator, executed: Assignment) -> Tuned:
    """The numbers that the simulator computes with in an assignment.

    Raises InputError where the assignment does not fit the workload, and on a weight that is quantized only as the
    network runs (a batch of experts' matrices, say), since no file holds such a layer.
    """
    simulator.build(executed)  # refuses what does not fit, and quantizes all layers at once
    model, calibration = simulator.model, simulator.calibration
    weights: dict[str, Stored] = {}
    biases: dict[str, Tensor] = {}
    quantizers: dict[Operand, ActivationQuantizer] = {}
    for layer in simulator.workload.layers:
        precision = executed.precision(layer.name)
        quantizers |= {key: calibration.quantizer(*key, precision.activation) for key in operands(layer, precision)}
        if layer.weight is None or layer.weight.key in weights:
            continue
        weight = part(model, layer.weight.key)
        if weight.shape != layer.weight.shape:
            raise InputError(
                "the layer's weight is no plain parameter, so that no file can hold it", where=layer.name,
                got=f"{layer.weight.shape} of {tuple(weight.shape)}", expected="one matrix or kernel for one layer",
            )  # fmt: skip
        stored = simulator.stored(layer, precision.weight) if precision.weight.is_integer else None
        weights[layer.weight.key] = weight if stored is None else stored.weight
        if (key := bias_key(model, layer)) is not None:
            bias, shift = part(model, key), None if stored is None else stored.shift
            biases[key] = bias if shift is None or shift.shape != bias.shape else bias + shift
    return Tuned(weights, biases, quantizers, calibration.functional)
