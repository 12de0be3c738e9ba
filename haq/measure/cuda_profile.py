"""The profile of an NVIDIA GPU under PyTorch before its rates are fitted."""

from __future__ import annotations

from haq.hardware.machine import OP_CLASSES
from haq.measure.device import EXPECTED, Document, Limits, new_figure, new_size

EAGER = "PyTorch runs every op as a kernel of its own, here within one CUDA graph"
CLASSES = ("conv", "depthwise", "gemm", "attention")
TILE = 64
"""Rows and columns of the smallest tile that CUTLASS offers for tensor cores, as in the a100 profile."""


def cuda_document(title: str, runtime: str, units: int, memory_bytes: int, limits: Limits) -> Document:
    """The document with every free figure at what is expected of it. units: streaming multiprocessors."""
    where = f"{title}, {runtime}"
    return {
        "title": title,
        "device_unit": "one GPU",
        "runtime": runtime,
        "confidence": "measured device",
        "confidence_note": "fitted to kernels timed on this machine, and corrected by their table",
        "latency_spread": new_figure(0.3, "fraction", "an aim: no network was timed with it", "assumed", 1.0),
        **_formats(),
        "arithmetic": {
            row: {"peak": new_figure(rate / 1e12, "TFLOP/s", f"the fastest kernel timed on {where}", "measured", 0.05)}
            for row, rate in limits.operations_per_s.items()
        },
        "efficiency": {
            name: new_figure(0.5, "fraction", EXPECTED, "assumed", 2.0)
            for op_class in CLASSES
            for name in (op_class, *(f"{op_class}/{row}" for row in limits.operations_per_s if row != "fp16"))
        },
        "memory": {
            "bandwidth": new_figure(limits.bytes_per_s / 1e9, "GB/s", f"weights of one row, {where}", "measured", 0.1),
            "efficiency": new_figure(1, "fraction", "the bandwidth is what kernels reached", "derived"),
            "capacity": new_size(memory_bytes, "GiB", 2**30, "the memory that the driver reports"),
            "overlap": new_figure(0.5, "fraction", EXPECTED, "assumed", 1.0),
        },
        "vector": {"rate": new_figure(500.0, "GOP/s", EXPECTED, "assumed", 4.0)},
        "tile": {
            **{side: new_figure(TILE, "count", "as in the a100 profile", "assumed", 1.0) for side in ("m", "n")},
            "k": new_figure(32, "count", "as in the a100 profile", "assumed", 1.0),
            "units": new_figure(units, "count", "streaming multiprocessors that the driver reports", "documented"),
        },
        "overhead": {
            "inference": new_figure(1e6 * limits.inference_s, "us", f"a graph of one op, {where}", "measured", 0.2),
            "kernel": {name: new_figure(2.0, "us", EXPECTED, "assumed", 2.0) for name in OP_CLASSES},
        },
        "fusion": {"layer": [], "glue": [], "convert": "kernel", "source": EAGER},
        "options": {"tf32": _tf32()},
    }


def cuda_later(document: Document, limits: Limits) -> None:
    """Nothing: what the second-level cache keeps is left to the table."""


def _formats() -> Document:
    product = "torch._int_mm multiplies int8 by int8 for linear layers of more than 16 rows; it has no convolution"
    narrow = "PyTorch has no int4 kernel of its own"
    return {
        "means": [
            {"bits": 4, "precision": "int4/fp16"},
            {"bits": 8, "kinds": ["embedding"], "precision": "int8/fp16"},
            {"bits": 8, "precision": "int8/int8"},
            {"bits": 16, "precision": "fp16/fp16"},
            {"bits": 32, "precision": "fp32/fp32"},
        ],
        "executes": [
            {"precisions": ["fp16/fp16", "bf16/bf16", "fp32/fp32"], "source": EAGER},
            {"precisions": ["int8/int8"], "kinds": ["linear"], "otherwise": product, "source": product},
        ],
        "refuses": [{"precisions": ["int4/fp16", "int8/fp16"], "reason": narrow, "source": EAGER}],
    }


def _tf32() -> Document:
    source = "torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32"
    row = {"precisions": ["fp32/fp32"], "arithmetic": "tf32", "source": source}
    return {"title": "FP32 layers multiply in TF32", "executes": [row]}
