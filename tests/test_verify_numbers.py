"""Scales and codes of an artifact against the config's: by hand, and in files whose channels are all but dead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_nets import bundle_of, exportable_of, numbers
from onnx import numpy_helper
from torch import nn

from haq.export import EXPORTERS
from haq.nn.exportable import Exportable
from haq.verify.artifact import open_artifact
from haq.verify.gate import Gate, Limits, judge
from haq.verify.measuring import How, measure
from haq.verify.numbers import Added, Weight, compared

CODES = np.array([[100, -50], [127, 3], [0, 0]], np.int8)
SCALES = np.array([0.5, 1e-12, 1e-10])
OPERAND = 0.01
UNIT = 4.0 / (2**30 * OPERAND)
"""The weight scale at which a bias of 4 is 2^30 products of codes: 3.7e-7."""
LEVELS = 255


def added(bias: tuple[float, ...] = (1.0, 4.0, -4.0)) -> Added:
    scales = np.array([0.5, UNIT, UNIT])
    codes = np.rint(np.array(bias) / (scales * OPERAND)).astype(np.int64)  # 200, 2^30, -2^30
    return Added(np.array(bias), codes, OPERAND, LEVELS)


def test_scales_are_compared_where_a_code_is_not_zero() -> None:
    (asked, got), other = compared(Weight(CODES, SCALES), Weight(CODES, np.array([0.5, 1e-12, 7.0])), None)
    assert (asked.tolist(), got.tolist(), other) == ([0.5, 1e-12], [0.5, 1e-12], 0)


def test_a_scale_that_was_enlarged_for_its_bias_is_asked_with_it() -> None:
    codes = np.array([[100, -50], [0, 0], [0, 0]], np.int8)  # 127e-12 is no step of 3.7e-7
    got = Weight(codes, np.array([0.5, UNIT, UNIT]))
    (asked, found), other = compared(Weight(CODES, SCALES), got, added())
    assert asked == pytest.approx(found)
    assert (len(asked), other) == (3, 0)
    # Doubled, the bias would be 8 instead of 4, though the codes are zero.
    (asked, found), other = compared(Weight(CODES, SCALES), Weight(codes, 2 * got.scales), added())
    assert found / asked == pytest.approx([2, 2, 2])
    assert other == 0


def test_coarser_codes_are_the_configs_weights_rounded() -> None:
    config = Weight(np.array([[127, 3]], np.int8), np.array([UNIT / 10]))
    bias = Added(np.array([4.0]), np.array([2**30]), OPERAND, LEVELS)
    (asked, _), other = compared(config, Weight(np.array([[13, 0]], np.int8), np.array([UNIT])), bias)
    assert (asked[0], other) == (pytest.approx(UNIT), 0)  # 12.7 and 0.3 steps
    for wrong in ([14, 0], [13, 1], [0, 0], [-13, 0]):
        assert compared(config, Weight(np.array([wrong], np.int8), np.array([UNIT])), bias)[1] == 1


def test_no_channel_gets_coarser_codes_without_a_bias_that_asks_for_it() -> None:
    config = Weight(np.array([[127, 3]], np.int8), np.array([UNIT / 10]))
    coarse = Weight(np.array([[13, 0]], np.int8), np.array([UNIT]))
    # With a bias of a quarter, a unit of 3.7e-7 is four times as large as it need be.
    smaller = Added(np.array([1.0]), np.array([2**28]), OPERAND, LEVELS)
    for bias in (None, smaller):
        (asked, got), other = compared(config, coarse, bias)
        assert got / asked == pytest.approx([10.0])
        assert other == 1


def test_a_channel_that_gives_nothing_at_all_may_have_any_scale() -> None:
    config = Weight(np.array([[127]], np.int8), np.array([1e-36]))
    here = Weight(np.array([[0]], np.int8), np.array([1e-28]))
    (asked, got), other = compared(config, here, Added(np.zeros(1), np.zeros(1, np.int64), OPERAND, LEVELS))
    assert (asked.tolist(), other) == (got.tolist(), 0)


def half_dead(dead: tuple[int, ...], faint: tuple[int, ...]) -> Exportable:
    """A network in int8 whose first convolution has pruned channels and some with a few codes left."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten()).eval()
    first = network[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    first.weight.data.copy_(numbers(4, 3, 3, 3, seed=5) / 5)
    first.bias.data.fill_(1.5)
    first.weight.data[list(dead)] *= 1e-12
    first.weight.data[list(faint)] *= 1e-5
    return exportable_of(bundle_of(network, [(numbers(16, 3, 6, 6, seed=s),) for s in range(3)]), "int8")


def verdict(what: Exportable, file: Path) -> Gate:
    return judge(measure(open_artifact(file, what.config), what, How("search", 1)), Limits())


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield None


@pytest.mark.parametrize(("dead", "faint"), [((1,), (2,)), ((0, 1, 2, 3), ())])
def test_dead_channels_pass_and_a_doubled_scale_beside_them_does_not(
    dead: tuple[int, ...], faint: tuple[int, ...], tmp_path: Path
) -> None:
    what, file = half_dead(dead, faint), tmp_path / "net.onnx"
    report = EXPORTERS["onnx-qdq"](what, file, {})
    assert report.losses[0].note.startswith(f"larger scales in {len(dead) + len(faint)} of 4 channels")
    model = onnx.load(file)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    codes = numpy_helper.to_array(constants["0.weight"])
    assert not codes[list(dead)].any()
    assert all(0 < np.abs(codes[channel]).max() < 127 for channel in faint)
    assert verdict(what, file).faults == ()

    scales = numpy_helper.to_array(constants["scales/0.weight"])
    constants["scales/0.weight"].CopyFrom(numpy_helper.from_array(2 * scales, "scales/0.weight"))
    onnx.save(model, file)
    assert "layer 0: scale differs from the config's by 2x" in verdict(what, file).faults
    constants["scales/0.weight"].CopyFrom(numpy_helper.from_array(scales, "scales/0.weight"))
    changed = codes.copy()
    changed[3] += 1
    constants["0.weight"].CopyFrom(numpy_helper.from_array(changed, "0.weight"))
    onnx.save(model, file)
    assert "layer 0: codes differ from the config's in 1 of 4 channels" in verdict(what, file).faults
