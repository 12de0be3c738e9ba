"""Calibration: what it records, and what it says about data that cannot be calibrated on."""

import numpy as np
import pytest
import torch
from test_simulate import prepared, seeded, small_network, workload_of
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import calibrate
from haq.nn.observers import OBSERVERS
from haq.precision import FORMATS


def test_it_records_range_histogram_zeros_samples_and_hash() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2)).eval()
    workload, x, more = workload_of(model), seeded(50, 4), 3 * seeded(30, 4, seed=1)
    calibration = calibrate(model, workload, [(x,), (more,)], observer="minmax")
    seen = torch.cat([x, more]).relu()
    assert calibration.operands == (("1", 0),)
    assert calibration.samples == 80
    assert calibration.histograms.high[0] == float(seen.max())
    assert calibration.histograms.zeros[0] == float((seen == 0).sum())
    assert calibration.histograms.counts.sum() + calibration.histograms.zeros[0] == seen.numel()
    expected = np.histogram(seen[seen != 0].numpy(), 2048, (0.0, float(seen.max())))[0]
    assert np.abs(calibration.histograms.counts[0] - expected).sum() <= 4  # fp32 against fp64 bin edges
    assert calibration.quantizer("1", 0, FORMATS["int8"]).scale == pytest.approx(float(seen.max()) / 255)


def test_it_is_the_same_whatever_the_batches_are_cut_into() -> None:
    model, x = small_network(), seeded(8, 3, 8, 8)
    workload = workload_of(model)
    whole = calibrate(model, workload, [(x,)])
    cut = calibrate(model, workload, [(part,) for part in x.split(3)])
    assert cut.samples == whole.samples
    for name in workload.layer_names:
        a, b = (c.quantizer(name, 0, FORMATS["int8"]) for c in (whole, cut))
        assert a.scale == pytest.approx(b.scale, rel=1e-3)


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_calibrating_twice_gives_the_same_quantizers(observer: str) -> None:
    model, x = small_network(), seeded(8, 3, 8, 8)
    first, second = (prepared(model, x, observer=observer)[1] for _ in range(2))
    assert first.quantizers == second.quantizers
    assert first.data_hash == second.data_hash


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 3, 8, 8),)], [()]])
def test_empty_calibration_data_is_an_error(batches: list[tuple[Tensor, ...]]) -> None:
    model = small_network()
    with pytest.raises(InputError, match=r"no calibration data.*at least one sample"):
        calibrate(model, workload_of(model), batches)


def test_calibration_data_with_nan_names_the_batch() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    broken = x.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"calibration batch 1, input 0.*nan"):
        calibrate(model, workload_of(model), [(x,), (broken,)])


def test_an_activation_that_is_infinite_names_the_layer() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    model[0].weight.data.fill_(3e38)
    with pytest.raises(InputError, match=r"layer 2, operand 0"):
        calibrate(model, workload_of(model), [(x,)])


def test_data_of_the_wrong_shape_shows_got_and_expected() -> None:
    model = small_network()
    with pytest.raises(InputError, match=r"batch 0.*\(2, 1, 8, 8\).*expected"):
        calibrate(model, workload_of(model), [(torch.zeros(2, 1, 8, 8),)])


def test_a_layer_that_is_never_reached_is_named() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Skips().eval()
    with pytest.raises(InputError, match=r"never reaches.*'unused'"):
        calibrate(model, workload_of(model), [(seeded(2, 4),)])


def test_an_unknown_observer_is_an_error_with_the_known_ones() -> None:
    model = small_network()
    with pytest.raises(InputError, match="minmax, mse, percentile"):
        calibrate(model, workload_of(model), [(seeded(1, 3, 8, 8),)], observer="max")


def test_one_sample_a_constant_input_and_dead_channels_are_fine() -> None:
    model = small_network()
    model[0].weight.data[3] = 0.0
    workload = workload_of(model)
    for x in (seeded(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.full((1, 3, 8, 8), 2.5)):
        calibration = calibrate(model, workload, [(x,)])
        for quantizer in calibration.quantizers.values():
            assert np.isfinite(quantizer.scale)
            assert quantizer.scale > 0


def test_the_model_is_untouched_even_when_calibration_fails() -> None:
    model = small_network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError):
        calibrate(model, workload_of(model), [(torch.zeros(2, 1, 8, 8),)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
