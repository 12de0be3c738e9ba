"""The profile of a CPU under ONNX Runtime before its rates are fitted: what it executes, merges and should reach."""

from __future__ import annotations

from haq.doctor import features_of
from haq.hardware.machine import OP_CLASSES, PAIRS
from haq.measure.device import EXPECTED, Document, Limits, new_figure, new_size
from haq.measure.machine import Machine

GRAPH = (
    "the graphs that ONNX Runtime's optimizer wrote (optimized_model_filepath) for the chains of haq measure: QDQ "
    "pairs around Add, Mul, Concat and MaxPool become integer kernels, around the others they stay"
)
SPREAD = "networks that it had not seen stayed within it where that was tried (experiments/measured_cpu)"
CLASSES = ("conv", "depthwise", "gemm", "attention")


def cpu_document(machine: Machine, threads: int, runtime: str, limits: Limits) -> Document:
    """The document with every free figure at what is expected of it."""
    unit = f"{threads} threads" if threads > 1 else "one thread"
    where = f"{machine.cpu}, {unit}, {runtime}"
    fastest: Document = {
        row: {"peak": new_figure(rate / 1e9, "GFLOP/s", f"the fastest kernel timed on {where}", "measured", 0.05)}
        for row, rate in limits.operations_per_s.items()
    }
    if "int8" in fastest and sums_in_pairs(machine.flags):
        fastest["int8"]["accumulator"] = PAIRS
    return {
        "title": f"{machine.cpu}, {unit}",
        "device_unit": unit,
        "runtime": runtime,
        "confidence": "measured device",
        "confidence_note": "fitted to kernels timed on this machine, and corrected by their table",
        "latency_spread": new_figure(0.2, "fraction", SPREAD, "assumed", 1.0),
        **_formats(),
        "arithmetic": fastest,
        "efficiency": {
            name: new_figure(0.5, "fraction", EXPECTED, "assumed", 2.0)
            for op_class in CLASSES
            for name in (op_class, f"{op_class}/int8")
        },
        "memory": {
            "bandwidth": new_figure(limits.bytes_per_s / 1e9, "GB/s", f"weights of one row, {where}", "measured", 0.1),
            "efficiency": new_figure(1, "fraction", "the bandwidth is what kernels reached", "derived"),
            "capacity": new_size(machine.memory_bytes, "GiB", 2**30, "physical pages of the system"),
            "overlap": new_figure(0.5, "fraction", EXPECTED, "assumed", 1.0),
        },
        "on_chip": _on_chip(machine, limits, where),
        "vector": {"rate": new_figure(5.0, "GOP/s", EXPECTED, "assumed", 4.0)},
        "tile": _tile(machine),
        "overhead": {
            "inference": new_figure(
                1e6 * limits.inference_s, "us", f"a model of one small op, {where}", "measured", 0.2
            ),
            "kernel": {name: new_figure(4.0, "us", EXPECTED, "assumed", 2.0) for name in OP_CLASSES},
        },
        "fusion": {
            "layer": ["activation"],
            "glue": ["activation"],
            "convert": "kernel",
            "float_glue": ["smooth", "norm", "reduce", "softmax"],
            "float_conv": ["smooth", "add"],
            "source": GRAPH,
        },
    }


def sums_in_pairs(flags: frozenset[str]) -> bool:
    """Whether ONNX Runtime's kernels for u8 x s8 saturate on a CPU with these flags: x86 with AVX2 and no VNNI.

    Source: MLAS chooses its kernels by them (platform.cpp); below AVX2 those of Linux widen codes to 16 bits first
    (qgemm_kernel_sse.cpp).
    """
    features = features_of(flags)
    return features.get("avx2", False) and not features["vnni"]


def _formats() -> Document:
    unpacked = "ONNX Runtime on a CPU stores int4 only and unpacks it in every inference, slower than fp32"
    cast = "ONNX Runtime has no fp16 arithmetic on a CPU: it casts to fp32 and back"
    timed = "graphs read back: W4 and W4A8 become DequantizeLinear and fp32 products, fp16 a Cast before and after"
    return {
        "means": [
            {"bits": 4, "kinds": ["matmul"], "precision": "int4/int4"},
            {"bits": 4, "precision": "int4/int8"},
            {"bits": 8, "precision": "int8/int8"},
            {"bits": 16, "precision": "fp16/fp16"},
            {"bits": 32, "precision": "fp32/fp32"},
        ],
        "executes": [
            {
                "precisions": ["int8/int8", "fp32/fp32"],
                "source": "read back from the optimized graphs: QLinearConv, QGemm, QLinearMatMul; uint8 activations",
            }
        ],
        "refuses": [
            {"precisions": ["int4/int8", "int4/int4"], "reason": unpacked, "source": timed},
            {"precisions": ["fp16/fp16"], "reason": cast, "source": timed},
        ],
    }


def _on_chip(machine: Machine, limits: Limits, where: str) -> Document:
    """The last cache as it is found: other programs, and other guests of the same machine, use it too."""
    size = machine.last_cache_bytes
    told = f"the system tells of {size / 2**20:g} MiB" if size else "the system does not tell its size"
    found = f"weights up to this size are read faster at once again, {where}; {told}"
    return {
        "capacity": new_figure(limits.cache_bytes / 2**20, "MiB", found, "measured", 0.3),
        "bandwidth": new_figure(limits.cache_bytes_per_s / 1e9, "GB/s", f"weights that stay, {where}", "measured", 0.1),
        "resident": new_figure(0.5, "fraction", "a tensor beside what is read with it", "assumed", 0.5),
        "keeps_weights": True,
    }


def cpu_later(document: Document, limits: Limits) -> None:
    """Put in what the cache keeps in a network, whose inferences are milliseconds apart."""
    source = "weights of which half is still there after a pause of milliseconds"
    document["on_chip"]["kept"] = new_figure(limits.kept_bytes / 2**20, "MiB", source, "measured", 0.5)


def _tile(machine: Machine) -> Document:
    lanes = machine.vector_floats
    source = f"MLAS works on blocks of {lanes} output channels with this CPU's vector unit (NCHWc, packed GEMM)"
    one = new_figure(1, "count", "rows and depth are not padded", "assumed", 0.5)
    return {"m": one, "n": new_figure(lanes, "count", source, "derived"), "k": one}
