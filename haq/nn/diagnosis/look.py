"""Looks at a quantized network once: every layer on FP32's inputs, and in the whole network, beside FP32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from haq.diagnose.evidence import Evidence, LayerEvidence
from haq.nn.calibrate import Operand, check_data
from haq.nn.diagnosis.joins import forced_bits_lost, join_evidence
from haq.nn.diagnosis.operands import OperandSums, Rounding
from haq.nn.diagnosis.outputs import OutputSums
from haq.nn.diagnosis.subject import Subject
from haq.nn.diagnosis.sums import Need, needs
from haq.nn.diagnosis.weights import weight_evidence
from haq.nn.instrument import Again, Onlooker, instrument_ops
from haq.nn.ptq.layers import arithmetic
from haq.nn.quantizers import cast, executed_weight
from haq.nn.sharing import shared_copy
from haq.nn.task import Inputs, batch_size, forward, taken
from haq.nn.tuned import Result, bias_key, build_tuned, part
from haq.workload import LayerSpec

MOST_SAMPLES, MOST_BYTES = 32, 256_000_000
"""FP32's outputs of so many samples, and of so many bytes, are held at a time."""


def look(subject: Subject, batches: Sequence[Inputs]) -> Evidence:
    """What the batches show of the network: one pass of FP32, in which each layer is also run with its operands and its
    weight rounded, and one of the network as the device computes it.

    batches: served inputs, without labels; a few dozen samples do. Raises InputError on no samples and on data that is
    not finite. Sums are kept, tensors are not: memory holds FP32's outputs of a few samples.

    What is measured how. SQNR of an operand, weight or output: summed squares of FP32 over those of the error.
    best_sqnr_db and channel_sqnr_db of operands come from a histogram (each bin evenly filled; per channel, the range
    that holds all of it), and are never below what is measured of the range in use. weight_sqnr_db of outputs is taken
    on rounded operands. underflow_share counts numbers that become zero though they are not, of float formats only.
    """
    check_data(batches, subject.workload)
    watched = _Watched(subject)
    model = shared_copy(subject.model)
    instrument_ops(model, subject.workload, watched, frozenset(subject.workload.layer_names))
    deployed = build_tuned(
        subject.model, subject.workload, subject.executed, subject.numbers, watched.listening(subject.results())
    )
    samples = 0
    with torch.inference_mode():
        for inputs in _small(subject, batches):
            samples += batch_size(inputs)
            forward(model, inputs)
            forward(deployed, inputs)
            watched.batch_is_over()
        need = needs(subject, batches)
        layers = {
            layer.name: _of_layer(subject, layer, watched, need.get(layer.name)) for layer in subject.workload.layers
        }
    magnitudes = {name: (sums.low, sums.high) for name, sums in watched.outputs.items()}
    joins = join_evidence(subject, layers, magnitudes)
    return Evidence(subject.workload, subject.executed, layers, joins, samples, forced_bits_lost(subject, magnitudes))


class _Watched(Onlooker):
    """The probe that gathers sums. It changes as the models run: it keeps FP32's outputs of the batch until the
    quantized network has answered it too."""

    def __init__(self, subject: Subject) -> None:
        self._specs = {layer.name: layer for layer in subject.workload.layers}
        self._precisions = {name: subject.executed.precision(name) for name in subject.workload.layer_names}
        self._quantizers = subject.numbers.quantizers
        self._weights, self._biases = dict(_changed_weights(subject)), dict(_bias_changes(subject))
        self.operands: dict[Operand, OperandSums] = {}
        self.outputs = {n: OutputSums(s, arithmetic(self._precisions[n])) for n, s in self._specs.items()}
        self._read: list[tuple[Tensor, Tensor]] = []
        self._exact: dict[str, Tensor] = {}
        self._answers: dict[str, Tensor] = {}
        self._again: tuple[str, Again, list[tuple[Tensor, Tensor]]] | None = None

    def operand(self, layer: str, index: int, x: Tensor) -> Tensor:
        x = x.detach()
        if (layer, index) not in self.operands:
            rounding = Rounding(self._precisions[layer].activation, self._quantizers.get((layer, index)))
            self.operands[layer, index] = OperandSums(self._specs[layer], index, rounding)
        self._read.append((x, self.operands[layer, index].add(x)))
        return x

    def product(self, layer: str, again: Again) -> None:
        self._again, self._read = (layer, again, self._read), []

    def output(self, layer: str, y: Tensor) -> Tensor:
        if self._again is not None:
            (_, again, read), self._again = self._again, None
            self._alone(layer, y, again, read)
        self._exact[layer] = y.detach().clone()  # an activation may write over it
        return y

    def listening(self, results: Mapping[str, Result]) -> dict[str, Result]:
        """The results of every layer, shown to this probe."""
        return {name: self._listener(name, results.get(name)) for name in self._specs}

    def batch_is_over(self) -> None:
        """Compare the two networks' outputs. They are kept until here since a linear layer on strided input shows its
        output twice, before and after its bias."""
        for layer, y in self._exact.items():
            self.outputs[layer].fp32(y)
            self.outputs[layer].in_network(self._answers[layer], y)
        self._exact.clear()
        self._answers.clear()

    def _listener(self, layer: str, result: Result | None) -> Result:
        def listen(y: Tensor, x: Tensor) -> Tensor:
            y = y if result is None else result(y, x)
            self._answers[layer] = y.detach().clone()
            return y

        return listen

    def _alone(self, layer: str, y: Tensor, again: Again, read: list[tuple[Tensor, Tensor]]) -> None:
        """Run the layer's op with rounded operands, and with the stored weight."""
        spec, fmt = self._specs[layer], arithmetic(self._precisions[layer])
        weight, bias = self._weights.get(layer), self._biases.get(layer)
        is_rounded = any(x is not rounded for x, rounded in read)
        if not is_rounded and weight is None and bias is None and fmt.name == "fp32":
            return
        rounded = [r for _, r in read]
        operands_wrong = again(rounded, None) - y if is_rounded else torch.zeros_like(y)
        made = operands_wrong + y if weight is None else again(rounded, weight)
        if bias is not None:
            made = made + (bias.reshape(-1, *[1] * (y.dim() - 2)) if spec.kind.startswith("conv") else bias)
        self.outputs[layer].alone(cast(made, fmt) - y, operands_wrong)


def _changed_weights(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Layer -> the weight that it multiplies with, where that is not FP32's."""
    for layer in subject.workload.layers:
        if layer.weight is not None:
            stored, precision = subject.numbers.weights[layer.weight.key], subject.executed.precision(layer.name)
            in_use, exact = executed_weight(stored, precision), part(subject.model, layer.weight.key)
            if not torch.equal(in_use, exact):
                yield layer.name, in_use.detach()


def _bias_changes(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Layer -> what its bias has beyond FP32's, where it has anything."""
    for layer in subject.workload.layers:
        if (key := bias_key(subject.model, layer)) is not None:
            kept = cast(subject.numbers.biases[key], arithmetic(subject.executed.precision(layer.name)))
            change = kept - part(subject.model, key)
            if bool(change.count_nonzero()):
                yield layer.name, change.detach()


def _of_layer(subject: Subject, layer: LayerSpec, watched: _Watched, need: Need | None) -> LayerEvidence:
    output = watched.outputs[layer.name].evidence()
    operands = [sums for (name, _), sums in watched.operands.items() if name == layer.name]
    return LayerEvidence(
        layer.name,
        subject.executed.precision(layer.name),
        tuple(sums.evidence(subject.calibrated) for sums in sorted(operands, key=lambda sums: sums.index)),
        None if layer.weight is None else weight_evidence(subject, layer),
        output if need is None else replace(output, accumulator_bits=need.bits, saturated_share=need.share),
    )


def _small(subject: Subject, batches: Sequence[Inputs]) -> Iterator[Inputs]:
    """The batches in parts whose outputs may be held twice."""
    per_sample = 2 * 4 * sum(layer.output_elements for layer in subject.workload.layers)
    most = max(1, min(MOST_SAMPLES, MOST_BYTES // max(per_sample, 1)))
    for inputs in batches:
        for rows in torch.split(torch.arange(batch_size(inputs)), most):
            yield taken(inputs, rows)
