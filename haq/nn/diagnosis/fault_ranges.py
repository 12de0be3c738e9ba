"""Plants faults in what numbers can hold: ranges of operands, fp16 results, sums, and results forced to integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from haq.nn.calibrate import Operand
from haq.nn.diagnosis.looked import batches_of, bits_needed, given, seen, with_histogram
from haq.nn.diagnosis.requantize import with_quantizer, with_range
from haq.nn.diagnosis.rescaling import beyond_fp16, check_same, pair_of
from haq.nn.diagnosis.subject import Subject
from haq.nn.observers import BINS
from haq.nn.quantizers import QuantizedWeight
from haq.nn.tuned import part
from haq.precision import FORMATS, Assignment, Precision

FP16 = Precision(FORMATS["fp16"], FORMATS["fp16"])
OUTLIERS = 4
"""How many numbers of the calibration data are outliers: too few for any range to be worth them."""
STEPS = 255
"""Steps of an 8-bit range."""


def activation_outliers(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """A few outliers in the calibration data made the range of the first operand `strength` times as wide.

    The range is stretched at its high end, as min-max calibration does; the calibration's histogram has the outliers in
    its last bin and everything else where it was.
    """
    operand = (layer, 0)
    low, high = seen(subject, operand)
    made = with_range(subject, operand, (low, end := low + strength * (high - low)))
    if subject.calibrated is None or operand not in subject.calibrated.rows:
        return made
    row, histograms = subject.calibrated.rows[operand], subject.calibrated.histograms
    first = float(histograms.low[row])
    counts, _ = np.histogram(histograms.centres[row], bins=BINS, range=(first, end), weights=histograms.counts[row])
    counts[-1] += OUTLIERS
    return with_histogram(made, operand, first, end, counts, float(histograms.zeros[row]))


def calibration_mismatch(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The first operand was calibrated on data `strength` times smaller than what is served."""
    operand = (layer, 0)
    quantizer = subject.numbers.quantizers[operand]
    made = with_quantizer(subject, operand, replace(quantizer, scale=quantizer.scale / strength))
    return _scaled_histogram(made, operand, 1 / strength)


def float_range(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The layer runs in fp16 and gives 2^k times as much, which its readers undo: values pass 65504 by `strength`.

    2^k is the least power of two that takes the largest calibrated value (behind an activation: that can be positive)
    at least so far. Raises InputError where the scaled weights would leave fp16 themselves: another fault.
    """
    pair = pair_of(subject.model, subject.workload, batches_of(subject, layer)[0], layer)
    read = [(name, 1) for name in pair.products] or [(name, 0) for name in pair.readers]
    largest = max(abs(end) for operand in read for end in seen(subject, operand))
    model, factor = beyond_fp16(subject.model, subject.workload, pair, largest, strength)
    check_same(subject.model, model, batches_of(subject, layer)[0], layer)
    numbers = subject.numbers
    weights = {**numbers.weights, f"{layer}.weight": part(model, f"{layer}.weight")}
    for name in pair.readers:
        stored = weights[f"{name}.weight"]
        if isinstance(stored, QuantizedWeight):
            weights[f"{name}.weight"] = replace(stored, scales=stored.scales / factor)
        else:
            weights[f"{name}.weight"] = stored / factor
    biases = {key: part(model, key) if key == f"{layer}.bias" else bias for key, bias in numbers.biases.items()}
    quantizers = {operand: q for operand, q in numbers.quantizers.items() if operand[0] != layer}
    executed = Assignment.of({**subject.executed, layer: FP16})
    made = subject.with_(
        model=model, executed=executed, numbers=replace(numbers, weights=weights, biases=biases, quantizers=quantizers)
    )
    for operand in (*((name, 1) for name in pair.products), *((name, 0) for name in pair.readers)):
        if (quantizer := quantizers.get(operand)) is not None:
            made = with_quantizer(made, operand, replace(quantizer, scale=quantizer.scale * factor))
        made = _scaled_histogram(made, operand, factor)
    return made


def accumulator_saturation(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The layer's sums go into an integer `strength` bits narrower than calibration samples need."""
    accumulator = f"int{max(2, bits_needed(subject, layer) - int(strength))}"
    return subject.with_(accumulators={**subject.accumulators, layer: accumulator})


def sensitive_operator(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The op behind the layer reads integers of `strength` bits over the whole range of the layer's result."""
    found = given(subject, layer)
    step = (found.high - found.low) / (2 ** int(strength) - 1)
    return subject.with_(forced_steps={**subject.forced_steps, layer: step})


def join_mismatch(subject: Subject, layer: str, strength: float, rng: np.random.Generator) -> Subject:
    """The layer's result takes the step of a join whose other input's 8-bit range is `strength` times as wide."""
    found = given(subject, layer)
    step = strength * (found.high - found.low) / STEPS
    return subject.with_(join_steps={**subject.join_steps, layer: step})


def _scaled_histogram(subject: Subject, operand: Operand, factor: float) -> Subject:
    """The subject whose calibration showed `factor` times what it did."""
    if subject.calibrated is None or operand not in subject.calibrated.rows:
        return subject
    row, histograms = subject.calibrated.rows[operand], subject.calibrated.histograms
    low, high = factor * float(histograms.low[row]), factor * float(histograms.high[row])
    return with_histogram(subject, operand, low, high, histograms.counts[row], float(histograms.zeros[row]))
