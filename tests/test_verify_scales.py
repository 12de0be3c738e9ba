"""Which scales of an artifact are the config's: in a channel that is all but dead also the one that its bias needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

pytest.importorskip("onnxruntime")

from test_export_onnx import bundle_of, exportable_of, exported, numbers

from haq.verify.artifact import open_artifact
from haq.verify.evidence import SAME_SCALE
from haq.verify.measuring import compared_scales


@pytest.fixture(scope="module")
def what():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        network[0].weight[1] *= 1e-12
        network[0].bias[1] = 1.5
    batches = [(numbers(16, 3, 6, 6, seed=s),) for s in range(3)]
    return exportable_of(bundle_of(nn.Sequential(network, nn.Flatten()).eval(), batches), "int8")


def different(file: Path, what) -> dict[tuple[str, str], float]:
    """What the gate refuses: operand or weight -> the worst ratio."""
    pairs = dict(compared_scales(open_artifact(file, what.config), what))
    ratios = {key: got / asked for key, (asked, got) in pairs.items()}
    worst = {key: float(ratio[np.abs(np.log(ratio)).argmax()]) for key, ratio in ratios.items()}
    return {key: ratio for key, ratio in worst.items() if abs(ratio - 1) > SAME_SCALE}


def test_the_larger_scale_of_a_dead_channel_is_right(what, tmp_path: Path) -> None:
    exported(what, tmp_path)
    asked, got = dict(compared_scales(open_artifact(tmp_path / "net.onnx", what.config), what))["0.0", "weight"]
    stored = what.numbers.weights["0.0.weight"].scales.double().numpy()
    # 1.5 as a code of 2^30 in units of weight scale x operand scale.
    needed = 1.5 / (2**30 * what.numbers.quantizers["0.0", 0].scale)
    assert got[1] == pytest.approx(needed, rel=1e-6)
    assert needed > 100 * stored[1]
    assert asked[[0, 2, 3]] == pytest.approx(stored[[0, 2, 3]])
    assert different(tmp_path / "net.onnx", what) == {}


@pytest.mark.parametrize(("channels", "factor"), [((0, 1, 2, 3), 2.0), ((1,), 2.0), ((2,), 1.5)])
def test_a_changed_scale_beside_a_dead_channel_is_not(what, tmp_path: Path, channels, factor) -> None:
    exported(what, tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    (tensor,) = [t for t in model.graph.initializer if t.name == "scales/0.0.weight"]
    scales = numpy_helper.to_array(tensor).copy()
    scales[list(channels)] *= factor
    tensor.CopyFrom(numpy_helper.from_array(scales, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    assert set(different(tmp_path / "changed.onnx", what)) == {("0.0", "weight")}
