"""Each repair undoes its cause, leaves everything else alone, and changes no tensor in place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from export_nets import bundle_of, exportable_of, numbers, picture_bundle, text_bundle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.diagnose.finding import Change, Repair
from haq.errors import InputError
from haq.nn.diagnosis.look import look
from haq.nn.diagnosis.repairs import REPAIRS, Look, repaired
from haq.nn.diagnosis.requantize import to_nearest, with_scales_refitted
from haq.nn.diagnosis.subject import subject_of
from haq.nn.quantizers import QuantizedWeight
from haq.nn.sharing import shared_copy
from haq.precision import FORMATS

X = numbers(24, 3, 8, 8, seed=11)
INT8 = FORMATS["int8"]


@pytest.fixture(scope="module")
def healthy():
    return subject_of(exportable_of(picture_bundle(), "int8/int8"))


def looked(subject, batches=((X,),)):
    return Look(tuple(batches), look(subject, batches))


def after(subject, kind, layer="", index=None, batches=((X,),)):
    seen = looked(subject, batches)
    return repaired(subject, Change((Repair(kind, layer, index),)), seen), seen.evidence


@torch.no_grad()
def loss(subject, x=X):
    """Squared distance of the deployed network's answers from FP32's."""
    return float((subject.build()(x) - subject.model(x)).square().mean())


def with_numbers(subject, **changes):
    return subject.with_(numbers=replace(subject.numbers, **changes))


def with_weight(subject, key, **changes):
    weights = {**subject.numbers.weights, key: replace(subject.numbers.weights[key], **changes)}
    return with_numbers(subject, weights=weights)


@pytest.mark.parametrize("kind", ["clip", "recalibrate"])
@pytest.mark.parametrize("factor", [64.0, 1 / 8])
def test_a_wrong_range_becomes_the_best_one(healthy, kind, factor) -> None:
    right = healthy.numbers.quantizers["depthwise", 0]
    wrong = replace(right, scale=right.scale * factor)
    broken = with_numbers(healthy, quantizers={**healthy.numbers.quantizers, ("depthwise", 0): wrong})
    cured, _ = after(broken, kind, "depthwise", 0)
    assert cured.numbers.quantizers["depthwise", 0].scale == pytest.approx(right.scale, rel=0.3)
    assert loss(cured) < loss(broken) / 4
    assert loss(cured) == pytest.approx(loss(healthy), rel=0.5)
    assert cured.numbers.quantizers["head", 0] is broken.numbers.quantizers["head", 0]


def test_a_shifted_bias_comes_back(healthy) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    key = "stem.bias"
    broken = with_numbers(healthy, biases={**healthy.numbers.biases, key: healthy.numbers.biases[key] + 0.5 * signs})
    cured, evidence = after(broken, "bias", "stem")
    assert evidence.layers["stem"].output.mean_error == pytest.approx(0.5 * signs.numpy(), abs=0.01)
    assert torch.allclose(cured.numbers.biases[key], healthy.numbers.biases[key], atol=0.01)
    assert loss(cured) < loss(broken) / 50


def test_scales_that_became_zero_come_back(healthy) -> None:
    scales = healthy.numbers.weights["pointwise.weight"].scales.clone()
    scales[3:9] = 0.0
    broken = with_weight(healthy, "pointwise.weight", scales=scales).with_(scale_format=FORMATS["fp16"])
    cured, evidence = after(broken, "rescale", "pointwise")
    assert evidence.layers["pointwise"].weight.lost_channels == (3, 4, 5, 6, 7, 8)
    stored = cured.numbers.weights["pointwise.weight"]
    assert torch.equal(stored.codes, healthy.numbers.weights["pointwise.weight"].codes)
    assert torch.allclose(stored.scales, healthy.numbers.weights["pointwise.weight"].scales, rtol=0.02)
    assert loss(cured) == pytest.approx(loss(healthy), rel=0.5)


def test_one_scale_for_all_becomes_one_per_channel(healthy) -> None:
    model = healthy.model
    narrow = nn.Parameter(model.depthwise.weight * torch.logspace(-3, 0, 16).reshape(-1, 1, 1, 1), False)

    made = shared_copy(model)
    made.depthwise._parameters["weight"] = narrow
    step = float(narrow.abs().max()) / 127
    one = QuantizedWeight(INT8, torch.round(narrow / step).to(torch.int8), torch.full((16,), step), 0)
    broken = with_numbers(healthy, weights={**healthy.numbers.weights, "depthwise.weight": one}).with_(model=made)
    cured, evidence = after(broken, "per_channel", "depthwise")
    assert evidence.layers["depthwise"].weight.sqnr_db < evidence.layers["depthwise"].weight.best_sqnr_db
    stored = cured.numbers.weights["depthwise.weight"]
    assert stored.scales.numpy() == pytest.approx(narrow.flatten(1).abs().amax(1).detach().numpy() / 127, rel=0.3)
    relative = ((stored.dequantize() - narrow) / narrow.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)).abs()
    assert float(relative.max()) < 0.01


@torch.no_grad()
def test_equalizing_leaves_fp32_as_it_was_and_gives_narrow_channels_their_codes() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    net = Net().eval()
    spread = torch.logspace(0, 3, 16)
    net.up.weight.mul_(spread[:, None])
    net.up.bias.mul_(spread)
    net.down.weight.div_(spread)
    batches = [(numbers(64, 8, seed=s),) for s in range(3)]
    subject = subject_of(exportable_of(bundle_of(net, batches), "int8/int8"))
    cured, evidence = after(subject, "equalize", "down", 0, [batches[1]])
    assert evidence.layers["down"].output.operand_sqnr_db < 26
    assert torch.allclose(cured.model(batches[2][0]), subject.model(batches[2][0]), rtol=1e-4, atol=1e-5)
    assert loss(cured, batches[2][0]) < loss(subject, batches[2][0]) / 10


@torch.no_grad()
def test_equalizing_convolutions_keeps_the_function(healthy) -> None:
    for layer in ("depthwise", "pointwise", "stem"):
        cured, _ = after(healthy, "equalize", layer, 0)
        assert torch.allclose(cured.model(X), healthy.model(X), rtol=1e-4, atol=1e-5)
        assert loss(cured) < 4 * loss(healthy)
        twice, _ = after(cured, "equalize", layer, 0)
        assert torch.allclose(twice.model(X), healthy.model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bundle", [picture_bundle, text_bundle], ids=["pictures", "texts"])
def test_a_gain_that_every_layer_lost_comes_back(bundle) -> None:
    made = bundle()
    subject = subject_of(exportable_of(made, "int8/int8"))
    x = made.task.splits["search"][0].inputs
    shrunk = {
        key: replace(w, scales=w.scales * 0.8) if key != "embed.weight" else w
        for key, w in subject.numbers.weights.items()
    }
    broken = with_numbers(subject, weights=shrunk)
    cured, _ = after(broken, "reestimate", batches=[x])
    assert loss(cured, x[0]) < loss(broken, x[0]) / 20
    held_out = made.task.splits["validation"][0].inputs[0]
    assert loss(cured, held_out) < loss(broken, held_out) / 10
    for key, weight in cured.numbers.weights.items():
        if key != "embed.weight":
            ratio = weight.scales / subject.numbers.weights[key].scales
            assert float(ratio.median()) == pytest.approx(1, abs=0.05)


def test_reestimating_a_healthy_network_does_no_harm(healthy) -> None:
    cured, _ = after(healthy, "reestimate", batches=[(X[:12],), (X[12:],)])
    assert loss(cured) < 2 * loss(healthy)


def test_what_a_target_forces_is_dropped_by_layer_or_altogether(healthy) -> None:
    forced = healthy.with_(
        accumulators={"stem": "int16"},
        join_steps={"pointwise": 0.5, "stem": 0.1},
        forced_steps={"head": 0.1},
    )
    seen = Look(((X,),), look(healthy, [(X,)]))
    assert repaired(forced, Change((Repair("wide_accumulator", "stem"),)), seen).accumulators == {}
    assert repaired(forced, Change((Repair("own_scale", "stem"),)), seen).join_steps == {"pointwise": 0.5}
    assert repaired(forced, Change((Repair("own_scale"),)), seen).join_steps == {}
    both = Change((Repair("own_scale"), Repair("unforce", "head")))
    assert loss(repaired(forced, both, seen)) < loss(forced)
    assert forced.forced_steps == {"head": 0.1}


def test_repairs_write_to_no_tensor(healthy) -> None:
    weights = {key: w.dequantize() for key, w in healthy.numbers.weights.items()}
    state = {key: value.clone() for key, value in healthy.model.state_dict().items()}
    seen = looked(healthy)
    for kind in REPAIRS:
        repaired(healthy, Change((Repair(kind, "depthwise", 0 if kind in ("clip", "equalize") else None),)), seen)
    assert all(torch.equal(w.dequantize(), weights[key]) for key, w in healthy.numbers.weights.items())
    assert all(torch.equal(value, state[key]) for key, value in healthy.model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "layer"), [("per_channel", "nowhere"), ("polish", "stem"), ("bias", "pointwise"), ("equalize", "")]
)
def test_repairs_that_do_not_apply_say_so(kind, layer) -> None:
    class NoBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.pointwise = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.pointwise(self.stem(x))

    subject = subject_of(exportable_of(bundle_of(NoBias().eval(), [(numbers(8, 4),)] * 3), "int8/int8"))
    with pytest.raises(InputError):
        after(subject, kind, layer, batches=[(numbers(8, 4),)])


@pytest.mark.parametrize("name", ["int8", "int4", "int4g32", "int4g64"])
def test_group_formats_are_rounded_and_refitted_too(name) -> None:
    fmt = FORMATS[name]
    weight = numbers(6, 80)
    stored = to_nearest(weight, fmt, 0)
    assert stored.scales.shape == ((6,) if fmt.group is None else (6, -(-80 // fmt.group)))
    noise = float((stored.dequantize() - weight).square().sum() / weight.square().sum())
    assert noise < (1e-4 if fmt.bits == 8 else 0.02)
    scales = stored.scales.clone()
    scales[2] = 0.0
    lost = replace(stored, scales=scales)
    again = with_scales_refitted(lost, weight, FORMATS["fp32"])
    assert torch.equal(again.codes, stored.codes)
    assert torch.allclose(again.scales, stored.scales, rtol=0.05)
    gone = replace(lost, codes=torch.where(torch.arange(6)[:, None] == 2, 0, stored.codes).to(torch.int8))
    assert torch.equal(with_scales_refitted(gone, weight, FORMATS["fp32"]).dequantize(), stored.dequantize())


@given(st.integers(0, 2**16), st.integers(0, 1))
def test_healthy_scales_are_never_touched(seed, axis) -> None:
    weight = numbers(5, 7, seed=seed)
    stored = to_nearest(weight, INT8, axis)
    again = with_scales_refitted(stored, weight, FORMATS["fp16"])
    assert torch.equal(again.codes, stored.codes)
    assert torch.equal(again.scales, stored.scales)
    assert np.isfinite(stored.scales.numpy()).all()
