"""Which failure mode there can be on which target, and why: read from the shipped hardware profiles where they tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from haq.hardware.legalize import execution, meaning
from haq.hardware.profile import load_profile
from haq.hardware.schema import HardwareProfile
from haq.precision import BIT_WIDTHS, Precision
from haq.workload import LayerSpec, WeightSpec

TARGETS = ("tpu-v3", "tpu-v4", "a100", "mobile")
Verdict = tuple[str, str]
"""`yes`, `no` or in what part it applies, and why."""

CONV, LINEAR, PRODUCT = "3x3 convolution", "Linear", "attention product"
ROOM = 2**31 // (255 * 127)
"""Products of the largest 8-bit codes that a signed 32-bit sum holds."""

PROBES: Mapping[str, LayerSpec] = {
    CONV: LayerSpec(
        CONV, "conv2d", ("x",), ((256, 14, 14),), (256, 14, 14), 1, None, WeightSpec("w", (256, 256, 3, 3), 0)
    ),
    LINEAR: LayerSpec(LINEAR, "linear", ("x",), ((256,),), (256,), 1, None, WeightSpec("w", (256, 256), 0)),
    PRODUCT: LayerSpec(PRODUCT, "matmul", ("x", "y"), ((4, 16, 16), (4, 16, 16)), (4, 16, 16), 1, None),
}


@dataclass(frozen=True)
class Facts:
    """What a target makes of each bit-width. asked, runs: (kind of layer, bits) -> precision."""

    profile: HardwareProfile
    asked: Mapping[tuple[str, int], Precision]
    runs: Mapping[tuple[str, int], Precision]

    @property
    def has_ranges(self) -> bool:
        """Whether 8 bits make operands integers, which need a range."""
        return self.runs[CONV, 8].activation.is_integer

    @property
    def eight(self) -> str:
        """`8 bits run as int8/bf16`."""
        return f"8 bits run as `{self.runs[CONV, 8]}`"

    def executes(self, name: str) -> bool:
        return any(name in row.precisions for row in self.profile.executes)


def facts(target: str) -> Facts:
    profile = load_profile(target)
    asked = {(kind, bits): meaning(profile, probe, bits) for kind, probe in PROBES.items() for bits in BIT_WIDTHS}
    runs = {key: execution(profile, PROBES[key[0]], precision)[0] for key, precision in asked.items()}
    return Facts(profile, asked, runs)


def ranges(f: Facts) -> Verdict:
    """Of what is wrong with the range of an operand."""
    if not f.has_ranges:
        return "no", f"{f.eight}: what a layer reads stays {f.runs[CONV, 8].activation} and has no range"
    tokens = f.executes("int8/int8t")
    return "yes", f"{f.eight}, a static range per tensor; the profile has {'ranges' if tokens else 'none'} per token"


def channel_imbalance(f: Facts) -> Verdict:
    weights = "stored weights have a scale per output channel, so only kernels without that lose"
    if not f.has_ranges:
        return "weights alone", f"{f.eight}: {weights}"
    return "yes", f"{f.eight}: one range for all channels that a layer reads; {weights}"


def biased_error(f: Facts) -> Verdict:
    return "yes", f"weights of 4 and 8 bits are integers (`{f.runs[LINEAR, 4]}`, `{f.runs[LINEAR, 8]}` for Linear)"


def float_range(f: Facts) -> Verdict:
    runs = f.runs[CONV, 16]
    wider = [name for name in ("bf16/bf16", "fp32/fp32") if f.executes(name) and name != str(runs)]
    repair = f"`{wider[0]}` is executed" if wider else "no wider float is executed, 32 bits run in it too: rescale"
    if runs.activation.name == "bf16":
        return "precision only", f"16 bits run as `{runs}`: fp32's range with 8 bits of precision; {repair}"
    return "yes", f"16 bits run as `{runs}`, which ends at 65504; {repair}"


def accumulator_saturation(f: Facts) -> Verdict:
    if not f.has_ranges:
        return "no", f"{f.eight}: products of {f.runs[CONV, 8].compute} are summed in fp32"
    return "no", f"{f.eight}, summed in int32: room for {ROOM:,} of the largest products"


def degenerate_scale(f: Facts) -> Verdict:
    stored = f.runs[LINEAR, 4]
    if stored.activation.name == "bf16":
        return "no", f"4 bits run as `{stored}`: scales are bf16 or fp32, with fp32's range"
    where = f"`{stored}` kernels" if stored.activation.name == "fp16" else "runtimes"
    return "yes", f"{where} may keep scales in fp16, whose smallest normal number is 6.1e-5"


def sensitive_operator(f: Facts) -> Verdict:
    if f.profile.name.startswith("mobile"):
        return "yes", f"{f.eight}, and softmax, norms and GELU between such layers run on integers too"
    return "layers", f"{f.eight}; softmax, norms and GELU stay in {f.runs[CONV, 16].activation} or fp32"


def join_mismatch(f: Facts) -> Verdict:
    if not f.has_ranges:
        return "no", f"{f.eight}: inputs of a join are {f.runs[CONV, 8].activation}"
    if f.profile.fusion.requantizes:
        return "yes", f"{f.eight}; the profile requantizes what a concatenation of integers shares with other readers"
    return "seldom", "an add ends its layer's kernel, before rounding; only inputs quantized alike share a scale"


def error_accumulation(f: Facts) -> Verdict:
    conv, linear = f.runs[CONV, 4], f.runs[LINEAR, 4]
    where = "" if conv == linear else f" in convolutions and as `{linear}` in Linear"
    return "yes", f"each layer that rounds adds its error; 4 bits run as `{conv}`{where}"


def not_executed(f: Facts) -> Verdict:
    """Every bit-width that runs otherwise, the same for several kinds once, and what is stored but not multiplied."""
    told: dict[str, list[str]] = {}
    for (kind, bits), runs in f.runs.items():
        asked = f.asked[kind, bits]
        if runs != asked:
            told.setdefault(f"`{asked}` runs as `{runs}`", []).append(kind)
        elif runs.weight.is_integer and not runs.activation.is_integer:
            told.setdefault(f"`{runs}` is storage", []).append(kind)
    parts = [text if len(kinds) == len(PROBES) else f"{text} ({', '.join(kinds)})" for text, kinds in told.items()]
    return "yes", "; ".join(parts)


def no_speedup(f: Facts) -> Verdict:
    if f.profile.fusion.convert == "fused":
        return "hardly", "converts are fused into their neighbours; only fp32 layers among others change a format"
    cost_us = 1e6 * f.profile.overhead.kernel["convert"].si
    return "yes", f"a change of format is a kernel of its own, {cost_us:.1f} us before it moves a byte (modelled)"


APPLIES: Mapping[str, Callable[[Facts], Verdict]] = {
    "activation-outliers": ranges,
    "calibration-mismatch": ranges,
    "channel-imbalance": channel_imbalance,
    "biased-error": biased_error,
    "degenerate-scale": degenerate_scale,
    "float-range": float_range,
    "accumulator-saturation": accumulator_saturation,
    "join-mismatch": join_mismatch,
    "sensitive-operator": sensitive_operator,
    "error-accumulation": error_accumulation,
    "not-executed": not_executed,
    "no-speedup": no_speedup,
}
