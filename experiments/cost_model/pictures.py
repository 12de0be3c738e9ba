"""The scatter plot: measured against modelled latency, fitted rows and rows of unseen models side by side."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd

COLOURS = {
    "Paddle-TRT": ("#0072b2", "A100, Paddle-TRT"),
    "TensorRT demoBERT": ("#56b4e9", "A100, demoBERT"),
    "FasterTransformer": ("#999999", "A100, FasterTransformer"),
    "tflite": ("#d55e00", "Snapdragon 8 Gen 3, LiteRT"),
    "qnn_dlc": ("#e69f00", "Snapdragon 8 Gen 3, QNN"),
    "TFLite": ("#009e73", "Pixel 4 CPU"),
    "TVM (HAWQ-V3 kernels)": ("#cc79a7", "T4, ResNet-18"),
    "MLPerf Offline": ("#000000", "TPU v3, ResNet-50"),
}
PANELS = (
    ("fit", "rows that were fitted to"),
    ("unseen model", "each network predicted without its rows"),
    ("held out", "rows looked up after the model was finished"),
)


def scatter(found: pd.DataFrame, path: Path) -> None:
    """Log-log, one panel per question, with the diagonal and the band of 20 %."""
    ours = found[found.predictor == "haq"]
    low, high = ours.measured_ms.min() / 1.6, ours.measured_ms.max() * 1.6
    figure, axes = plt.subplots(1, len(PANELS), figsize=(17, 6), sharex=True, sharey=True, layout="constrained")
    for axis, (question, title) in zip(axes, PANELS, strict=True):
        rows = ours[ours.question == question]
        axis.fill_between(
            [low, high], [0.8 * low, 0.8 * high], [1.2 * low, 1.2 * high], color="#eee", label="within 20 %"
        )
        axis.plot([low, high], [low, high], color="#666666", linewidth=0.8)
        for runtime, (colour, label) in COLOURS.items():
            group = rows[rows.runtime == runtime]
            if len(group):
                error = group.error_percent.abs().mean()
                axis.scatter(group.measured_ms, group.modelled_ms, s=18, color=colour, label=f"{label}: {error:.0f} %")
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
        axis.set_xlabel("published latency, ms per batch (measured)")
        axis.legend(loc="upper left", fontsize=8, frameon=False, title="mean absolute error", title_fontsize=8)
    axes[0].set_ylabel("haq, ms per batch (modelled)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
