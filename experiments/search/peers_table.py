"""Sizes and measures what was chosen for a network in haq's simulator, as rows of peers.csv beside our own points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from haq.accuracy import Scores, compare
from haq.front import Point
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.size import size_bytes
from haq.history import SEARCH, VALIDATION
from haq.nn.bundle import Bundle, load_bundle
from haq.nn.fold import fold_batch_norm
from haq.nn.metrics import all_scores
from haq.nn.prepare import Quantization, quantizable
from haq.nn.task import ClassificationTask
from haq.nn.trace import trace
from haq.precision import Assignment
from haq.quality import AGREEMENT, KL, TOP1
from haq.resources import cache_dir
from haq.spacefile import load_space
from haq.workload import Workload

SHARES = (0.15, 0.35, 0.6)
"""The budgets, from all layers at 4 bits (0) to all at 8 (1)."""

TARGET = "reference"
COLUMNS = ["network", "tool", "version", "settings", "budget_mb", "size_bytes", "layers_at_4", "layers"]
COLUMNS += ["split", "samples"]
COLUMNS += ["accuracy", "drop_points", "drop_low", "drop_high", "agreement", "kl_nats", "wall_s", "sample_forwards"]
COLUMNS += ["equal_size_bytes", "equal_size_accuracy", "equal_size_kl_nats", "gain_points", "gain_low", "gain_high"]
COLUMNS += ["equal_accuracy_bytes", "equal_kl_bytes"]


@dataclass(frozen=True, eq=False)
class Subject:
    """One trained network, folded. budgets: name -> (whole size, packed weights alone) in bytes."""

    name: str
    bundle: Bundle
    model: nn.Module
    workload: Workload
    budgets: Mapping[str, tuple[float, float]]

    @property
    def task(self) -> ClassificationTask:
        assert isinstance(self.bundle.task, ClassificationTask)
        return self.bundle.task


@dataclass(frozen=True)
class Chosen:
    """What one tool chose for one budget; without one (`""`) nothing was chosen, and it took no time."""

    tool: str
    version: str
    settings: str
    budget: str
    executed: Assignment
    wall_s: float = 0.0
    sample_forwards: int = 0


def subject(space: str) -> Subject:
    bundle = load_bundle(load_space(space))
    model = fold_batch_norm(bundle.model, bundle.example)
    workload = trace(model, bundle.example, name=space)
    narrow, wide = (size_bytes(workload, executed(workload, {}, bits)) for bits in (4, 8))
    sizes = {f"{share:g}": narrow + share * (wide - narrow) for share in SHARES}
    # Scales, biases and norms are the same at 4 and 8 bits, and a weight at 8 bits is a byte.
    rest = wide - sum(weights(workload).values())
    return Subject(space, bundle, model, workload, {name: (size, size - rest) for name, size in sizes.items()})


def weights(workload: Workload) -> dict[str, int]:
    """Module name -> elements of its weight, of all layers whose bits are chosen."""
    chosen = (layer for layer in workload.layers if layer.kind not in ("embedding", "matmul"))
    return {layer.module: layer.weight.elements for layer in chosen if layer.weight is not None}


def executed(workload: Workload, bits: Mapping[str, int], others: int) -> Assignment:
    """What `reference` runs: embeddings and attention products at 8 bits, layers not in `bits` at `others`."""
    free = weights(workload)
    asked = {layer.name: bits.get(layer.module, others) if layer.module in free else 8 for layer in workload.layers}
    return legalize(workload, Assignment.of(asked), load_profile(TARGET)).executed


@dataclass(frozen=True, eq=False)
class Ours:
    """Every feasible point that we measured, and the figure that one is chosen by."""

    points: tuple[Point, ...]
    by: str


def best(points: Sequence[Point], size: float, by: str) -> Point | None:
    """The point within the size with the least `drop_points` or `kl_nats` on the search split, then the least other."""
    within = [point for point in points if point.losses[0] <= size]
    names = sorted(("drop_points", "kl_nats"), key=lambda name: name != by)
    return min(within, key=lambda point: (*(_figure(point, name) for name in names), point.losses[0]), default=None)


def smallest(points: Sequence[Point], figure: str, limit: float) -> Point | None:
    """The smallest point whose figure on the search split is no worse than the limit."""
    within = [point for point in points if _figure(point, figure) <= limit + 1e-9]
    return min(within, key=lambda point: point.losses[0], default=None)


def _figure(point: Point, name: str) -> float:
    assert point.result.measurement is not None
    return point.result.measurement.figures()[name]


class Measured:
    """Scores of assignments on both splits; it keeps what it measured, since tools agree on some."""

    def __init__(self, net: Subject) -> None:
        self._net, self._kept = net, dict[tuple[str, str], dict[str, Scores]]()
        batches = tuple(net.task.calibration())
        how = Quantization(folder=cache_dir() / "ptq")
        self._simulator = quantizable(net.model, net.workload, batches, how)
        self._fp32 = {split: net.task.outputs(net.model, split) for split in (SEARCH, VALIDATION)}
        self.fp32 = {split: all_scores(outputs, outputs) for split, outputs in self._fp32.items()}

    def __call__(self, precisions: Assignment, split: str) -> dict[str, Scores]:
        """The scores of METRICS, per sample."""
        key = (precisions.signature, split)
        if key not in self._kept:
            outputs = self._net.task.outputs(self._simulator.build(precisions), split)
            self._kept[key] = all_scores(outputs, self._fp32[split])
        return self._kept[key]


def rows(net: Subject, chosen: Chosen, own: Ours, measured: Measured) -> Iterator[dict[str, str]]:
    """One row per split; a tool is compared with the best of ours of its size."""
    size = size_bytes(net.workload, chosen.executed)
    free = [layer.name for layer in net.workload.layers if layer.module in weights(net.workload)]
    narrow = sum(chosen.executed.precision(name).weight.bits == 4 for name in free)
    row = {**dict.fromkeys(COLUMNS, ""), "network": net.name, "tool": chosen.tool, "version": chosen.version}
    row |= {"settings": chosen.settings, "size_bytes": str(size), "layers_at_4": str(narrow), "layers": str(len(free))}
    if chosen.budget:
        row |= {"budget_mb": f"{net.budgets[chosen.budget][0] / 1e6:.4f}", "wall_s": f"{chosen.wall_s:.1f}"}
        row |= {"sample_forwards": str(chosen.sample_forwards)}
    ours = None
    if chosen.tool != "haq":
        row |= equally_good(measured(chosen.executed, SEARCH), measured.fp32[SEARCH], own.points)
        ours = best(own.points, size, own.by)
    for split in (SEARCH, VALIDATION):
        scores = measured(chosen.executed, split)
        of_split = {"split": split} | figures(measured.fp32[split], scores)
        if ours is not None:
            of_split |= gain(
                size_bytes(net.workload, ours.result.executed), measured(ours.result.executed, split), scores
            )
        yield row | of_split


def figures(fp32: Mapping[str, Scores], scores: Mapping[str, Scores]) -> dict[str, str]:
    m = compare(fp32[TOP1], scores[TOP1], "")
    assert m.drop_interval is not None
    drop = {"drop_points": m.drop_points, "drop_low": m.drop_interval.low, "drop_high": m.drop_interval.high}
    numbers = {"accuracy": m.accuracy, **drop, "agreement": float(scores[AGREEMENT].mean())}
    kl = {"kl_nats": f"{scores[KL].mean():.6f}"}
    return {"samples": str(m.samples)} | {name: f"{value:.4f}" for name, value in numbers.items()} | kl


def gain(size: int, ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, str]:
    """What our point of at most the same size has over a tool's: its drop under ours."""
    m = compare(ours[TOP1], theirs[TOP1], "")
    assert m.drop_interval is not None
    points = {"gain_points": m.drop_points, "gain_low": m.drop_interval.low, "gain_high": m.drop_interval.high}
    numbers = {"equal_size_accuracy": float(ours[TOP1].mean()), **points}
    about = {"equal_size_bytes": str(size), "equal_size_kl_nats": f"{ours[KL].mean():.6f}"}
    return about | {name: f"{value:.4f}" for name, value in numbers.items()}


def equally_good(scores: Mapping[str, Scores], fp32: Mapping[str, Scores], points: Sequence[Point]) -> dict[str, str]:
    """Sizes of our smallest points that are as good as these scores on the search split."""
    drop = 100 * float(fp32[TOP1].mean() - scores[TOP1].mean())
    found = {
        "equal_accuracy_bytes": smallest(points, "drop_points", drop),
        "equal_kl_bytes": smallest(points, "kl_nats", float(scores[KL].mean())),
    }
    return {name: str(int(point.losses[0])) for name, point in found.items() if point is not None}
