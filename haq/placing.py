"""Every layer at every bit-width, its neighbours left as they are: what runs there and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from haq.hardware.cost import ConvertCost, convert_cost, plan
from haq.hardware.legalize import execution, meaning
from haq.hardware.roofline import LayerCost, kernel_cost, seconds
from haq.hardware.schedule import Kernel, Read
from haq.hardware.schema import HardwareProfile
from haq.hardware.work import Setting, Work, kernel_work
from haq.precision import BIT_WIDTHS, FP32, Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.workload import LayerSpec, Workload


@dataclass(frozen=True)
class Placed:
    """A layer in one precision, its neighbours as they are: its kernel, and the changes of format at its edges."""

    kernel: LayerCost
    converts: tuple[ConvertCost, ...]

    @property
    def precision(self) -> Precision:
        return self.kernel.precision

    @property
    def converts_ms(self) -> float:
        return sum(convert.latency_ms for convert in self.converts)

    @property
    def latency_ms(self) -> float:
        return self.kernel.latency_ms + self.converts_ms


@dataclass(frozen=True)
class Width:
    """What a bit-width asks for on the target, what runs there instead (`placed`), and the reason if that differs."""

    bits: int
    asked: Precision
    placed: Placed
    reason: str

    @property
    def executed(self) -> Precision:
        return self.placed.precision


@dataclass(frozen=True)
class Case:
    """One layer as it runs now, and at each of the four bit-widths, narrowest first."""

    layer: LayerSpec
    kernel: Kernel
    setting: Setting
    now: Placed
    widths: tuple[Width, ...]

    @property
    def work(self) -> Work:
        """What its kernel does as it runs now."""
        return kernel_work(self.kernel, self.now.precision, self.setting)

    @property
    def to_ms(self) -> float:
        """From the seconds of the roofline to the milliseconds of `now`, which a measured table may have corrected."""
        modelled_s = seconds(self.work, self.setting.profile)
        spent_ms = self.now.kernel.latency_ms - self.now.kernel.convert_ms
        return spent_ms / modelled_s if modelled_s else 1e3

    @property
    def up_to_now(self) -> tuple[Width, ...]:
        """The bit-widths that are no wider than what runs now; those that run the same included."""
        same = [w.bits for w in self.widths if w.executed == self.now.precision]
        widest = max(same, default=self.now.precision.weight.bits)
        return tuple(width for width in self.widths if width.bits <= widest)


def cases(
    workload: Workload, executed: Assignment, profile: HardwareProfile, *, batch: int, scaling: Scaling = PLAIN
) -> tuple[Case, ...]:
    """The case of every layer, in order; `executed` is legalized. scaling: the scales that bit-widths ask for."""
    neighbourhood = _Neighbourhood(*plan(workload, profile, batch), executed, scaling)
    return tuple(neighbourhood.case(layer) for layer in workload.layers)


@dataclass(frozen=True)
class _Edge:
    """A tensor that one kernel reads from another, by their indices."""

    read: Read
    source: int
    consumer: int


class _Neighbourhood:
    """Prices single layers in other precisions; a class because the schedule's edges are sorted once for all layers."""

    def __init__(self, kernels: tuple[Kernel, ...], setting: Setting, executed: Assignment, scaling: Scaling) -> None:
        self._kernels, self._setting, self._executed, self._scaling = kernels, setting, executed, scaling
        self._kernel_of = {kernel.head.name: kernel for kernel in kernels if kernel.head is not None}
        self._edges: dict[str, list[_Edge]] = {}
        for index, kernel in enumerate(kernels):
            for read in kernel.reads:
                if read.source is not None:
                    edge = _Edge(read, read.source, index)
                    for anchor in {kernel.anchor, kernels[read.source].anchor} - {None}:
                        assert anchor is not None
                        self._edges.setdefault(anchor, []).append(edge)

    def case(self, layer: LayerSpec) -> Case:
        """The layer as it runs now and at every bit-width."""
        profile = self._setting.profile
        asked = {bits: meaning(profile, layer, bits, self._scaling) for bits in BIT_WIDTHS}
        runs = {bits: execution(profile, layer, precision) for bits, precision in asked.items()}
        now = self._executed.precision(layer.name)
        placed = {p: self._placed(layer.name, p) for p in {now, *(precision for precision, _ in runs.values())}}
        widths = tuple(Width(bits, asked[bits], placed[runs[bits][0]], runs[bits][1]) for bits in BIT_WIDTHS)
        return Case(layer, self._kernel_of[layer.name], self._setting, placed[now], widths)

    def _placed(self, layer: str, precision: Precision) -> Placed:
        edges = self._edges.get(layer, ())
        converts = (self._convert(edge, layer, precision) for edge in edges)
        cost = kernel_cost(self._kernel_of[layer], precision, self._setting)
        return Placed(cost, tuple(convert for convert in converts if convert is not None))

    def _convert(self, edge: _Edge, layer: str, precision: Precision) -> ConvertCost | None:
        source, consumer = self._kernels[edge.source], self._kernels[edge.consumer]
        formats = (self._works_in(source, layer, precision), self._works_in(consumer, layer, precision))
        return convert_cost(
            edge.read, source, consumer.name, (formats[0].activation, formats[1].activation), self._setting
        )

    def _works_in(self, kernel: Kernel, layer: str, precision: Precision) -> Precision:
        """What the kernel works in when `layer` takes `precision` and all others are as they are."""
        if kernel.anchor is None:
            return FP32
        return precision if kernel.anchor == layer else self._executed.precision(kernel.anchor)
