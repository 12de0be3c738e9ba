"""The trainable quantized network: learned quantizers in place of a calibrated network's weights and operands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from haq.errors import InputError
from haq.nn.calibrate import Calibration, Operand
from haq.nn.lsq import LearnedBias, LearnedOperand, LearnedWeight, Stored, round_to_format
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import executed_weight, largest_by_channel
from haq.nn.sharing import shared_copy
from haq.nn.simulate import Simulator
from haq.nn.tuned import Tuned, bias_key, check_ties, joined, operands, part
from haq.nn.visible import instrument_visibly
from haq.precision import FORMATS, Assignment
from haq.workload import LayerSpec, Workload, elements


class Trainable(nn.Module):
    """A network that computes in the executed precisions and can be trained. It changes: it is trained.

    Its parameters are those of the learned quantizers: weights, biases and steps of every layer. Embedding tables are
    rounded once and stay, since a short run sees most of their rows too rarely; norms and other parameters that are
    never quantized stay too. Batch norm is folded; what could not be folded keeps its statistics.
    """

    def __init__(self, model: nn.Module, workload: Workload, executed: Assignment, calibration: Calibration) -> None:
        """model: folded FP32; it stays as it is. Raises InputError where the assignment does not fit the workload."""
        super().__init__()
        simulator = Simulator(model, workload, calibration)
        simulator.build(executed)  # refuses what does not fit
        _check_scales(workload, executed)
        check_ties(workload, executed)
        network = shared_copy(model).eval()
        # In tuples: their parameters are no part of this module.
        self._model, self._network, self._functional = (model,), (network,), calibration.functional
        self._precisions = {name: executed.precision(name) for name in workload.layer_names}
        self._fixed: dict[str, tuple[Stored, Tensor]] = {}
        self._weights: dict[str, LearnedWeight] = {}
        self._shifts: dict[str, Tensor | None] = {}
        self._biases: dict[str, LearnedBias] = {}
        self._operands: dict[Operand, LearnedOperand] = {}
        trained = {layer.weight.key for layer in workload.layers if layer.weight and layer.kind != "embedding"}
        for layer in workload.layers:
            if layer.weight is not None:
                self._add_parameters(layer, simulator, calibration, trained)
            for operand in operands(layer, self._precisions[layer.name]):
                start = calibration.quantizer(*operand, self._precisions[layer.name].activation)
                self._operands[operand] = LearnedOperand(start, elements(layer.input_shapes[operand[1]]))
        # By number: a name of a layer may hold a dot, that of a module may not.
        self.weights = nn.ModuleList(self._weights.values())
        self.biases = nn.ModuleList(self._biases.values())
        self.operands = nn.ModuleList(self._operands.values())
        instrument_visibly(network, workload, self)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        """What the network returns, computed in the executed precisions."""
        values = {key: value.detach() for key, value in self._model[0].named_parameters()}  # norms are not trained
        values |= {key: value for key, (_, value) in self._fixed.items()}
        values |= {key: weight.forward() for key, weight in self._weights.items()}
        values |= {key: bias.forward() for key, bias in self._biases.items()}
        result: object = functional_call(self._network[0], joined(values, self._model[0]), args, kwargs)
        return result

    def frozen(self) -> Tuned:
        """Its numbers as they stand now, a copy: what is deployed."""
        return Tuned(
            {
                **{key: stored for key, (stored, _) in self._fixed.items()},
                **{key: weight.frozen() for key, weight in self._weights.items()},
            },
            {key: bias.frozen() for key, bias in self._biases.items()},
            {operand: learned.frozen() for operand, learned in self._operands.items()},
            self._functional,
        )

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        """As `instrument.Probe`: the operand, rounded."""
        learned = self._operands.get((layer, index))
        if learned is not None:
            return learned.forward(x)
        return round_to_format(x, self._precisions[layer].activation)

    def output(self, layer: str, y: Tensor) -> Tensor:
        """As `instrument.Probe`: the result, rounded where the layer computes in a narrow float format."""
        return round_to_format(y, arithmetic(self._precisions[layer]))

    def parameter(self, layer: str, x: Tensor, channel_axis: int | None) -> Tensor:
        """As `instrument.Probe`: parameters are rounded before the network runs."""
        return x

    def _add_parameters(
        self, layer: LayerSpec, simulator: Simulator, calibration: Calibration, trained: set[str]
    ) -> None:
        assert layer.weight is not None
        key, axis, precision = layer.weight.key, layer.weight.channel_axis, self._precisions[layer.name]
        if key not in self._weights and key not in self._fixed:
            weight = part(self._model[0], key)
            quantized = simulator.stored(layer, precision.weight) if precision.weight.is_integer else None
            start = weight if quantized is None else quantized.weight
            self._shifts[key] = None if quantized is None else quantized.shift
            if key in trained:
                self._weights[key] = LearnedWeight(weight, start, axis, precision)
            else:
                self._fixed[key] = start, executed_weight(start, precision)
        bias = bias_key(self._model[0], layer)
        if bias is not None and bias not in self._biases:
            unit = _bias_unit(
                part(self._model[0], key), axis, calibration.quantizer(layer.name, 0, FORMATS["int8"]).scale
            )
            first, shift = part(self._model[0], bias), self._shifts[key]
            # The correction that post-training quantization made is where training begins.
            corrected = first if shift is None or shift.shape != first.shape else first + shift
            self._biases[bias] = LearnedBias(corrected, unit, arithmetic(precision))


def _check_scales(workload: Workload, executed: Assignment) -> None:
    for layer in workload.layers:
        precision = executed.precision(layer.name)
        if precision.weight.group is not None or precision.activation.per_token:
            raise InputError(
                "finetuning learns one scale per output channel and per activation", where=layer.name,
                got=str(precision), expected=str(precision.plain), way_out="finetune a config without finer scales",
            )  # fmt: skip


def _bias_unit(weight: Tensor, channel_axis: int, int8_scale: float) -> Tensor:
    """(channels,) what the largest weight adds at half of the operand's range: biases learn as fast as weights do."""
    largest = largest_by_channel(weight, channel_axis) * (int8_scale * 128)
    return torch.where(largest > 0, largest, torch.ones_like(largest))
