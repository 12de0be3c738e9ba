"""Published comparisons between precisions and between devices, beside what the committed profiles say of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from haq.pricing import price
from haq.spacefile import load_space
from haq.tracecache import workload_of


def latency_ms(space: str, target: str, bits: int, batch: int) -> float:
    """The modelled latency with every layer at one bit-width."""
    return price(workload_of(load_space(space)), target, bits, batch=batch).cost.latency_ms


def orderings() -> Iterable[dict[str, object]]:
    """One record per published comparison. in_fit: whether the rows behind it were fitted to."""
    rows = []

    def compare(what: str, published: float, modelled: float, in_fit: str, source: str) -> None:
        rows.append(
            {"what": what, "published": published, "modelled": round(modelled, 3), "in_fit": in_fit, "source": source}
        )

    paddle = "DeepLearningExamples RN50v1.5, Paddle-TRT"
    for batch, published in ((1, 0.76 / 0.70), (256, 14.74 / 9.16)):
        gain = latency_ms("resnet50", "a100:80gb", 16, batch) / latency_ms("resnet50", "a100:80gb", 8, batch)
        compare(f"A100, ResNet-50, batch {batch}: fp16 over int8", round(published, 2), gain, "yes", paddle)
    fast = "a100:80gb,fastertransformer"
    tf32 = latency_ms("bert_base", f"{fast},tf32", 32, 32)
    int8 = latency_ms("bert_base", fast, 8, 32)
    compare("A100, BERT-Base, 128 tokens, batch 32: drop from TF32 to INT8 in FasterTransformer", 0.67, 1 - int8 / tf32,
            "TF32 yes, INT8 no", "FasterTransformer bert_guide: 11.77 and 3.85 ms (INT8-v2)")  # fmt: skip
    compare("A100, the same: INT8 latency in ms", 3.85, int8, "no", "FasterTransformer bert_guide (INT8-v2)")
    default = 1 - latency_ms("bert_base", "a100", 8, 32) / latency_ms("bert_base", "a100:tf32", 32, 32)
    compare("A100, the same drop with the default profile (demoBERT's kernels)", 0.65, default, "INT8 yes, TF32 no",
            "the field's claim; demoBERT publishes no TF32")  # fmt: skip
    for space, batch, published in (("resnet50", 256, 1.74), ("bert_base", 128, 2.3)):
        ratio = latency_ms(space, "tpu-v3", 16, batch // 2) / latency_ms(space, "tpu-v4", 16, batch)
        compare(f"TPU v4 over v3, per chip, {space}: throughput", published, ratio,
                "ResNet-50's ratio set v4's convolutions" if space == "resnet50" else "no",
                "training throughputs (MLPerf v0.7): orientation only")  # fmt: skip
    dense = latency_ms("densenet121", "mobile", 8, 1) / latency_ms("densenet121", "mobile", 16, 1)
    compare("Snapdragon 8 Gen 3, DenseNet-121: w8a8 over fp16 (slower when above 1)", round(1.611 / 1.244, 2), dense,
            "yes", "Qualcomm AI Hub, tflite")  # fmt: skip
    return rows


def layer_orderings(path: Path) -> Iterable[dict[str, object]]:
    """HAWQ-V3's latencies of single layers on a T4, none of them fitted to: how well the model ranks them."""
    published = pd.read_csv(path)
    rows = []
    for (space, bits), group in (
        ((space, bits), group) for space, group in published.groupby("space") for bits in (8, 4)
    ):
        layers = price(workload_of(load_space(str(space))), "t4", bits, batch=8).cost.layers
        cost = {layer.layer: layer.latency_ms for layer in layers}
        modelled = group.layer.map(cost)
        measured = group[f"int{bits}_ms"]
        rows.append(
            {
                "space": space, "format": f"int{bits}", "layers": len(group),
                "published_sum_ms": round(measured.sum(), 3), "modelled_sum_ms": round(modelled.sum(), 3),
                "rank_correlation": round(float(spearmanr(measured, modelled)[0]), 3),
            }
        )  # fmt: skip
    return rows
