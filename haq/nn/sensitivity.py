"""Measures what each piece of a network costs in its executed precision, on calibration data, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from haq.additivity import sample_pairs
from haq.errors import InputError
from haq.nn.effects import EffectStore, Partial
from haq.nn.metrics import Outputs, check_classification, cross_entropy, kl_from_fp32
from haq.nn.prefix import replayed
from haq.nn.recording import Recording, record
from haq.nn.task import Inputs, batch_size, logits_of
from haq.nn.trace_graph import tensors_in
from haq.precision import FP32, Assignment
from haq.sensitivity import Effect, Kind, Pair, Sensitivity, quantized_part
from haq.workload import Workload

SAMPLES = 64
"""Enough to order layers by; also the most that run at once, since all activations of a batch are kept."""

PAIR_SEED = 0

Progress = Callable[[int, int], None]
"""(pieces and pairs done so far, times batches; how many there are)."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What effects are measured on. labels: (n,) class numbers for each batch, or none at all."""

    batches: tuple[Inputs, ...]
    labels: tuple[Tensor, ...] = ()

    @property
    def size(self) -> int:
        return sum(batch_size(batch) for batch in self.batches)


def measure_sensitivity(
    build: Callable[[Assignment], nn.Module],
    workload: Workload,
    sample: Sample,
    pieces: Sequence[Assignment],
    pairs: int,
    *,
    measure: Kind,
    kept: EffectStore,
    progress: Progress,
) -> Sensitivity:
    """The effect of every piece, and of at most so many pairs of them that are sampled once the pieces are known.

    build: makes the model in executed precisions, which shares parameters with the FP32 one. pieces: in depth order.
    What `kept` holds is not measured again, so that a stopped measurement goes on. measure: `kl` takes the first tensor
    of the output for (n, classes) logits; `relative error` all of its floating-point tensors. Raises InputError on
    outputs that are not finite in FP32 and on logits that do not fit the labels.
    """
    pass_ = _Pass(build, workload, sample, measure, kept)
    batches = len(sample.batches)
    total = (len(pieces) + pairs) * batches
    for done in pass_.run([quantized(piece) for piece in pieces]):
        progress(done, total)
    effects = {piece: pass_.effect(quantized(piece)) for piece in pieces}
    chosen = sample_pairs(effects, pairs, PAIR_SEED)
    total = (len(pieces) + len(chosen)) * batches
    for done in pass_.run([_both(*pair) for pair in chosen]):
        progress(len(pieces) * batches + done, total)
    measured = tuple(Pair(*pair, pass_.effect(_both(*pair))) for pair in chosen)
    return Sensitivity(measure, sample.size, effects, measured, pass_.sample_forwards)


def quantized(piece: Assignment) -> Assignment:
    """The layers of the piece that are not FP32, which name its network whatever else it lists."""
    part = quantized_part(piece)
    return Assignment(tuple((layer, piece[layer]) for layer in piece if (layer, piece[layer]) in part))


def _both(first: Assignment, second: Assignment) -> Assignment:
    return Assignment((*quantized(first).entries, *quantized(second).entries))


class _Pass:
    """Measures pieces on all batches. It changes as it is used: it counts what that takes."""

    def __init__(
        self,
        build: Callable[[Assignment], nn.Module],
        workload: Workload,
        sample: Sample,
        measure: Kind,
        kept: EffectStore,
    ) -> None:
        self._build, self._workload, self._sample, self._measure, self._kept = build, workload, sample, measure, kept
        self.sample_forwards = 0.0

    def run(self, pieces: Sequence[Assignment]) -> Iterator[int]:
        """Measure what is missing; yields how many pieces times batches are done."""
        done = 0
        for number, inputs in enumerate(self._sample.batches):
            recording: Recording | None = None
            for piece in pieces:
                if self._kept.get(piece.signature, number) is None:
                    if recording is None:
                        recording = self._record(inputs)
                    self._kept.add(piece.signature, number, self._one(piece, number, recording))
                partial = self._kept.get(piece.signature, number)
                assert partial is not None
                self.sample_forwards += partial.share * partial.samples
                done += 1
                yield done
            self.sample_forwards += batch_size(inputs) if pieces else 0

    def effect(self, piece: Assignment) -> Effect:
        """The effect over all batches of a piece that was measured."""
        parts = [self._kept.get(piece.signature, number) for number in range(len(self._sample.batches))]
        known = [part for part in parts if part is not None]
        assert len(known) == len(parts), "the piece was not measured"
        losses = [part.loss_increase for part in known if part.loss_increase is not None]
        samples = sum(part.samples for part in known)
        divergence, scale = sum(part.divergence for part in known), sum(part.scale for part in known)
        return Effect(
            # Outputs that are zero throughout have no scale: any error is infinitely large beside them.
            divergence / scale if scale else (np.inf if divergence else 0.0),
            sum(losses) / samples if len(losses) == len(known) else None,
            samples,
        )

    def _model(self, piece: Assignment) -> nn.Module:
        """The model with the piece's precisions, everything else in FP32."""
        names = self._workload.layer_names
        return self._build(Assignment(tuple((name, piece.get(name, FP32)) for name in names)))

    def _record(self, inputs: Inputs) -> Recording:
        recording = record(self._model(Assignment(())), inputs)
        if not all(bool(tensor.isfinite().all()) for tensor in self._tensors(recording.output)):
            raise InputError(
                "the outputs are not finite in FP32", where=self._workload.name, expected="finite outputs",
                way_out="check the weights and the calibration data",
            )  # fmt: skip
        return recording

    def _one(self, piece: Assignment, number: int, recording: Recording) -> Partial:
        inputs = self._sample.batches[number]
        with torch.inference_mode():
            found = replayed(self._model(piece), recording, self._workload, piece, inputs)
            answers, fp32 = self._tensors(found.output), self._tensors(recording.output)
            samples = batch_size(inputs)
            if self._measure == "kl":
                labels = self._sample.labels[number].cpu() if self._sample.labels else None
                divergence, loss = _classified(answers[0], fp32[0], labels)
                return Partial(divergence, samples, loss, samples, found.share)
            error, square = _squares(answers, fp32)
            return Partial(error, square, None, samples, found.share)

    def _tensors(self, output: object) -> list[Tensor]:
        if self._measure == "kl":
            return [logits_of(output).detach().cpu()]
        return [tensor.detach() for tensor in tensors_in(output) if tensor.is_floating_point()]


def _classified(logits: Tensor, fp32: Tensor, labels: Tensor | None) -> tuple[float, float | None]:
    """The sums of KL(FP32 || candidate) and, with labels, of the rise of cross entropy; infinite where undefined."""
    shown = () if labels is None else (labels,)
    candidate, reference = Outputs((logits,), shown), Outputs((fp32,), shown)
    divergence = _defined(float(kl_from_fp32(candidate, reference).sum()))
    if labels is None:
        return divergence, None
    check_classification(reference, "calibration")
    gained = cross_entropy(candidate, reference) - cross_entropy(reference, reference)
    return divergence, _defined(float(gained.sum()))


def _squares(answers: Sequence[Tensor], fp32: Sequence[Tensor]) -> tuple[float, float]:
    """The sum of squared errors, infinite where one is undefined, and the sum of FP32's squares."""
    errors = [(a.double() - b.double()).square().sum() for a, b in zip(answers, fp32, strict=True)]
    return _defined(float(sum(errors))), float(sum(b.double().square().sum() for b in fp32))


def _defined(number: float) -> float:
    return np.inf if np.isnan(number) else number
