"""Draws one small picture per failure mode: `mnist_resnet18` with the fault planted at middle strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from cases import Case
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from networks import Network, bench_of, open_network, planted

from haq.diagnose.cost_faults import plant_no_speedup, plant_not_executed
from haq.diagnose.evidence import Evidence, OperandEvidence
from haq.diagnose.finding import Change, Repair
from haq.diagnose.strengths import STRENGTHS
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.nn.diagnosis.bench import TorchBench, open_bench
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.sums import needs
from haq.precision import Assignment

SPACE, TARGET = "mnist_resnet18", "a100"
BLUE, ORANGE, RED, PALE, GREY = "#0b5fa5", "#d9822b", "#b3261e", "#c9d6e3", "#9aa3ad"
JUDGED = 256
FP16_MOST, FP16_NORMAL = 65504.0, 2.0**-14
PLACES: Mapping[str, str] = {
    "sensitive-operator": "fc",
    "join-mismatch": "layer1.1.conv2",
    "error-accumulation": "layer1.0.conv1",
    "not-executed": "layer3.0.downsample.0",
    "no-speedup": "layer1.0.conv2",
}
"""Where each fault is planted: one of its places in `cases.py`; of the others the early one."""
EARLY = "layer1.1.conv1"


def draw_all(folder: Path, modes: Sequence[str] = ()) -> None:
    """A PNG per mode, of 600 x 300 pixels. modes: all unless given."""
    network = open_network(SPACE, JUDGED)
    for mode in modes or PICTURES:
        figure = Figure(figsize=(6, 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        PICTURES[mode](axes, network, mode)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{mode}.png", dpi=100)
        print(f"drew {mode}", flush=True)


def place(mode: str) -> str:
    return PLACES.get(mode, EARLY)


def middle(mode: str) -> float:
    return STRENGTHS[mode].defaults[1]


def case(mode: str, layer: str, strength: float) -> Case:
    return Case("picture", SPACE, "int8", (mode,), (layer,), (strength,))


def seen(network: Network, mode: str) -> Evidence:
    """What a look at the planted network shows."""
    return look(planted(network, case(mode, place(mode), middle(mode))), network.samples.looked)


def title(axes: Axes, mode: str, what: str = "") -> None:
    axes.set_title(f"{place(mode)}, strength {middle(mode):g}{what}", fontsize=10, loc="left")


def values(axes: Axes, operand: OperandEvidence) -> None:
    axes.stairs(operand.counts, operand.edges, fill=True, color=PALE, label="values in FP32")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_xlabel(f"what {operand.layer} reads")
    axes.set_ylabel("numbers")


def outliers(axes: Axes, network: Network, mode: str) -> None:
    operand = seen(network, mode).layers[place(mode)].operands[0]
    values(axes, operand)
    (low, high), (_, largest) = operand.range, operand.seen
    step = (high - low) / 255
    codes = np.arange(0.0, 1.6 * largest, step)
    for i, code in enumerate(codes):
        axes.axvline(code, color=BLUE, linewidth=1.3, label="codes of the range in use" if i == 0 else None)
    axes.axvline(operand.best_range[1], color=ORANGE, linestyle="--", linewidth=1.5, label="end of the best range")
    axes.set_xlim(-0.02 * largest, 1.6 * largest)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    title(axes, mode, f": {operand.sqnr_db:.0f} dB, {operand.best_sqnr_db:.0f} dB at best")


def mismatch(axes: Axes, network: Network, mode: str) -> None:
    operand = seen(network, mode).layers[place(mode)].operands[0]
    values(axes, operand)
    axes.axvspan(operand.range[1], operand.seen[1], color=RED, alpha=0.08, label="clipped")
    axes.axvline(operand.range[1], color=BLUE, linewidth=1.5, label="end of the range in use")
    axes.axvline(operand.best_range[1], color=ORANGE, linestyle="--", linewidth=1.5, label="end of the best range")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    title(axes, mode, f": {100 * operand.clipped_share:.0f} % clipped")


def imbalance(axes: Axes, network: Network, mode: str) -> None:
    weight = seen(network, mode).layers[place(mode)].weight
    assert weight is not None
    largest = np.sort(weight.channel_largest)[::-1]
    step = float(np.max(weight.scales))
    axes.bar(range(len(largest)), largest, color=np.where(largest < step / 2, RED, BLUE), width=0.8)
    axes.axhline(step / 2, color=ORANGE, linestyle="--", linewidth=1.5, label="half a step of the one scale")
    axes.set_yscale("log")
    axes.set_xlabel("output channels, widest first")
    axes.set_ylabel("largest weight")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    title(axes, mode, f": {int((largest < step / 2).sum())} of {len(largest)} channels are lost")


def bias(axes: Axes, network: Network, mode: str) -> None:
    healthy = look(network.subject, network.samples.looked)
    for evidence, colour, label in ((seen(network, mode), RED, "planted"), (healthy, BLUE, "healthy")):
        output = evidence.layers[place(mode)].output
        assert output is not None
        ratio = output.mean_error / np.maximum(output.error_deviation, 1e-12)
        axes.plot(range(len(ratio)), ratio, "o", markersize=3.5, color=colour, label=label)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-1000, 1000)
    axes.set_xlim(right=1.25 * axes.get_xlim()[1])
    axes.set_xlabel("output channel")
    axes.set_ylabel("mean error / deviation")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    title(axes, mode)


def floats(axes: Axes, network: Network, mode: str) -> None:
    evidence = seen(network, mode)
    reader = network.subject.workload.layer_names[network.subject.workload.layer_names.index(place(mode)) + 1]
    operand = evidence.layers[reader].operands[0]
    values(axes, operand)
    beyond = float(operand.counts[operand.edges[:-1] >= FP16_MOST].sum())
    axes.axvspan(FP16_MOST, operand.seen[1], color=RED, alpha=0.08, label="infinite in fp16")
    axes.axvline(FP16_MOST, color=RED, linewidth=1.5, label="65504, where fp16 ends")
    axes.set_xlabel(f"what {place(mode)} gives, behind its ReLU")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    title(axes, mode, f": {100 * beyond / operand.counts.sum():.2g} % overflow")


def accumulator(axes: Axes, network: Network, mode: str) -> None:
    layer = place(mode)
    wide = network.subject.with_(accumulators={layer: "int32"})
    bits = needs(wide, network.samples.looked)[layer].bits
    tried = range(bits - 7, bits + 1)
    subjects = [network.subject.with_(accumulators={layer: f"int{b}"}) for b in tried]
    shares = [needs(subject, network.samples.looked)[layer].share for subject in subjects]
    broken = planted(network, case(mode, layer, middle(mode))).accumulators[layer]
    axes.bar(tried, [100 * s for s in shares], color=[RED if f"int{b}" == broken else BLUE for b in tried], width=0.7)
    for b, share in zip(tried, shares, strict=True):
        axes.text(b, 100 * share, f"{100 * share:.2g}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(list(tried))
    axes.set_xlabel("bits of the accumulator")
    axes.set_ylabel("sums cut off, %")
    title(axes, mode, f" (red): the largest sum takes {bits} bits")


def degenerate(axes: Axes, network: Network, mode: str) -> None:
    healthy = look(network.subject, network.samples.looked).layers[place(mode)].weight
    broken = seen(network, mode).layers[place(mode)].weight
    assert healthy is not None
    assert broken is not None
    order = np.argsort(healthy.scales)[::-1]
    lost = np.isin(order, broken.lost_channels)
    channels = np.arange(len(order))
    axes.plot(channels[~lost], broken.scales[order][~lost], "o", markersize=3.5, color=BLUE, label="stored")
    right, zero = healthy.scales[order][lost], np.full(int(lost.sum()), FP16_NORMAL / 8)
    axes.plot(channels[lost], right, "o", markersize=3.5, mfc="none", color=GREY, label="should be")
    axes.plot(channels[lost], zero, "v", markersize=4, color=RED, label="stored as zero")
    axes.axhline(FP16_NORMAL, color=ORANGE, linestyle="--", linewidth=1.5, label="fp16's smallest normal number")
    axes.set_yscale("log")
    axes.set_xlabel("output channels, by scale")
    axes.set_ylabel("weight scale")
    axes.legend(frameon=False, fontsize=8, loc="center", ncols=2)
    title(axes, mode)


def operator(axes: Axes, network: Network, mode: str) -> None:
    bits = (8, 5, 4, 3, 2, 1)
    bench, evidence = bench_of(network, network.subject)
    healthy = mean_nats(bench)
    for layer, colour in ((place(mode), RED), ("layer1.0.conv1", ORANGE), ("layer3.0.conv1", BLUE)):
        subjects = [planted(network, case(mode, layer, b)) for b in bits]
        benches = [open_bench(network.what, subject, network.samples, evidence)[0] for subject in subjects]
        nats = [mean_nats(bench) for bench in benches]
        axes.plot(bits, np.maximum(np.array(nats) - healthy, 1e-6), "o-", color=colour, label=layer)
    axes.axvline(middle(mode), color=GREY, linestyle=":", linewidth=1.2)
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("bits that the layer's result is forced to")
    axes.set_ylabel("loss, nats")
    axes.legend(frameon=False, fontsize=8)
    title(axes, mode, " (dotted)")


def mean_nats(bench: TorchBench) -> float:
    kl = bench.measure(Change()).kl
    assert kl is not None, "a classifier shows its outputs"
    return float(kl.mean())


def join(axes: Axes, network: Network, mode: str) -> None:
    subject = planted(network, case(mode, place(mode), middle(mode)))
    evidence = look(subject, network.samples.looked)
    step = subject.join_steps[place(mode)]
    largest = next(j for j in evidence.joins if j.layer == place(mode)).largest[place(mode)]
    own = step / 2 ** evidence.joins[0].bits_lost
    bars = (
        ("the other input,\nshared step", step, 255 * step, GREY),
        (f"{place(mode)},\nshared step", step, largest, RED),
        (f"{place(mode)},\nstep of its own", own, largest, BLUE),
    )
    for y, (_, low, high, colour) in enumerate(bars):
        left, right = np.log2(min(low, high)), np.log2(max(low, high))
        axes.barh(y, right - left, left=left, color=colour, height=0.55)
        text = f"{np.log2(high / low):.1f} bits" if high > low else "below one step"
        axes.text(right + 0.15, y, text, va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
    axes.set_xlim(right=np.log2(255 * step) + 2.5)
    axes.set_xlabel("log2 of the numbers, from the step to the largest")
    title(axes, mode)


def accumulation(axes: Axes, network: Network, mode: str) -> None:
    bench, before = bench_of(network, planted(network, case(mode, place(mode), middle(mode))))
    after = look(bench.changed(Change((Repair("reestimate"),))), network.samples.looked)
    healthy = look(network.subject, network.samples.looked)
    shown = ((healthy, GREY, "healthy"), (before, RED, "planted"), (after, BLUE, "re-estimated"))
    for evidence, colour, label in shown:
        outputs = [layer.output for layer in evidence.layers.values()]
        axes.plot([o.joint_sqnr_db for o in outputs if o is not None], "o-", markersize=3, color=colour, label=label)
    axes.set_xticks(range(0, len(healthy.layers), 5))
    axes.set_xlabel("layer, in the order in which they run")
    axes.set_ylabel("joint SQNR, dB")
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=3)
    axes.set_ylim(top=axes.get_ylim()[1] + 8)
    title(axes, mode)


def not_executed(axes: Axes, network: Network, mode: str) -> None:
    workload, profile = network.subject.workload, load_profile(TARGET)
    before = Assignment.uniform(workload.layer_names, 8)
    asked = plant_not_executed(workload, before, profile, place(mode), int(middle(mode)))
    legal = legalize(workload, asked, profile)
    wanted = {fallback.layer: fallback.requested for fallback in legal.fallbacks}
    names = workload.layer_names
    runs = [legal.executed.precision(name) for name in names]
    colours = [RED if name in wanted else PALE for name in names]
    axes.bar(range(len(names)), [p.weight.bits for p in runs], color=colours, width=0.7, label="runs")
    bits = [(wanted.get(n) or p).weight.bits for n, p in zip(names, runs, strict=True)]
    axes.plot(range(len(names)), bits, "_", color=BLUE, markersize=11, markeredgewidth=2.5, label="asked")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_ylim(0, 10.5)
    axes.set_yticks([0, 4, 8])
    axes.set_ylabel("bits of the weight")
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    title(axes, mode, f", {TARGET}")


def speedup(axes: Axes, network: Network, mode: str) -> None:
    workload, profile = network.subject.workload, load_profile(TARGET)
    wide = Assignment.uniform(workload.layer_names, 16)
    islands = plant_no_speedup(workload, wide, profile, place(mode), int(middle(mode)))
    narrow = Assignment.uniform(workload.layer_names, 8)
    kinds = (("16 bits", wide), (f"{middle(mode):g} islands\nof 8 bits", islands), ("8 bits", narrow))
    for y, (_, assignment) in enumerate(kinds):
        costs = estimate(workload, legalize(workload, assignment, profile).executed, profile, batch=1)
        converts = 1e3 * sum(c.latency_ms for c in costs.converts)
        kernels = 1e3 * costs.latency_ms - converts
        axes.barh(y, kernels, color=BLUE, height=0.55, label="layers and the rest" if y == 0 else None)
        axes.barh(y, converts, left=kernels, color=RED, height=0.55, label="changes of format" if y == 0 else None)
        axes.text(kernels + converts + 3, y, f"{kernels:.1f} + {converts:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(kinds)), [name for name, _ in kinds])
    axes.set_xlim(right=1.25 * axes.get_xlim()[1])
    axes.set_ylim(-0.5, 3.1)
    axes.set_xlabel("us, modelled, batch 1")
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    title(axes, mode, f", {TARGET}")


PICTURES: Mapping[str, Callable[[Axes, Network, str], None]] = {
    "activation-outliers": outliers,
    "calibration-mismatch": mismatch,
    "channel-imbalance": imbalance,
    "biased-error": bias,
    "degenerate-scale": degenerate,
    "float-range": floats,
    "accumulator-saturation": accumulator,
    "join-mismatch": join,
    "sensitive-operator": operator,
    "error-accumulation": accumulation,
    "not-executed": not_executed,
    "no-speedup": speedup,
}
