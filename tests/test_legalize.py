"""What each bit-width means on each target (decision 2), and that every change of a request is said."""

import pytest
from nets import attention, conv, linear, residual, uniform

from haq.errors import InputError
from haq.hardware.legalize import executable, legalize, widest
from haq.hardware.profile import load_profile
from haq.precision import GROUPS, Assignment, Precision
from haq.scaling import PLAIN, Scaling
from haq.workload import Workload

MEANING = {
    # (target, kind): what 4, 8, 16 and 32 bits execute as
    ("tpu-v3", "conv"): ("int4/bf16", "int8/bf16", "bf16/bf16", "fp32/fp32"),
    ("tpu-v4", "conv"): ("int4/bf16", "int8/bf16", "bf16/bf16", "fp32/fp32"),
    ("tpu-v4", "linear"): ("int4/bf16", "int8/bf16", "bf16/bf16", "fp32/fp32"),
    ("tpu-v4", "product"): ("bf16/bf16", "bf16/bf16", "bf16/bf16", "fp32/fp32"),
    ("a100", "conv"): ("int8/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100", "linear"): ("int4/fp16", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100", "product"): ("int8/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100:int4_conv", "conv"): ("int4/int4", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("mobile", "conv"): ("int8/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("mobile", "pointwise"): ("int4/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("mobile", "linear"): ("int4/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("mobile", "narrow linear"): ("int8/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("mobile", "product"): ("int8/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("mobile-cpu", "conv"): ("int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("reference", "conv"): ("int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("reference", "product"): ("int8/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
}
LAYERS = {
    "conv": conv("l", "x", 64, 64, 8),
    "pointwise": conv("l", "x", 64, 64, 8, kernel=1),
    "linear": linear("l", "x", 64, 64),
    "narrow linear": linear("l", "x", 64, 32),
    "product": attention().layers[3],
}


def alone(layer):
    return Workload("one", (("x", layer.input_shapes[0]),), (layer,), (layer.name,))


@pytest.mark.parametrize(("target", "kind"), MEANING)
def test_a_bit_width_means_what_the_target_executes(target, kind):
    layer, profile = LAYERS[kind], load_profile(target)
    for bits, expected in zip((4, 8, 16, 32), MEANING[target, kind], strict=True):
        legal = legalize(alone(layer), uniform(alone(layer), bits), profile)
        assert str(legal.executed[layer.name]) == expected


def test_stored_narrow_and_computed_wide_is_no_fallback():
    net = residual()
    assert legalize(net, uniform(net, 4), load_profile("tpu-v4")).fallbacks == ()


def test_a_fallback_names_layer_request_execution_and_reason():
    net = residual()
    legal = legalize(net, uniform(net, 4), load_profile("mobile"))
    (first, second, third) = legal.fallbacks
    assert (first.layer, str(first.requested), str(first.executed)) == ("a", "int4/int8", "int8/int8")
    assert "1x1 convolutions and Linear with more than 32" in first.reason
    assert (second.layer, third.layer) == ("b", "c")  # the head has 10 outputs


def test_fp32_on_the_htp_runs_as_fp16_and_says_so():
    net = residual()
    legal = legalize(net, uniform(net, 32), load_profile("mobile"))
    assert {str(p) for p in legal.executed.values()} == {"fp16/fp16"}
    assert {f.reason for f in legal.fallbacks} == {"the HTP runs fp32 graphs as fp16"}
    assert str(widest(load_profile("mobile"), net.layers[0])) == "fp16/fp16"


def test_an_explicit_precision_that_is_not_executed_takes_the_next_wider_one():
    net = residual()
    asked = Assignment.uniform(net.layer_names, Precision.parse("int4/int16"))
    legal = legalize(net, asked, load_profile("a100"))
    assert str(legal.executed["a"]) == "int8/int8" or str(legal.executed["a"]) == "fp16/fp16"
    assert all(f.requested == Precision.parse("int4/int16") and f.reason for f in legal.fallbacks)


WIDE = linear("l", "x", 256, 192)
FINE = Scaling(64, per_token=True)
SCALED = {
    # (target, layer): what 4, 8, 16 and 32 bits execute as when groups of 64 and scales per token are asked for
    ("reference", WIDE): ("int4g64/int8t", "int8/int8t", "fp16/fp16", "fp32/fp32"),
    ("reference", LAYERS["linear"]): ("int4/int8t", "int8/int8t", "fp16/fp16", "fp32/fp32"),  # 64 inputs: one group
    ("reference", LAYERS["conv"]): ("int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("reference", conv("l", "x", 128, 64, 8, kernel=1)): ("int4g64/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("reference", LAYERS["product"]): ("int8/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("reference", attention().layers[0]): ("int4/int8", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100", WIDE): ("int4g64/fp16", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100", linear("l", "x", 192, 192)): ("int4/fp16", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("a100", linear("l", "x", 256, 100)): ("int4/fp16", "int8/int8", "fp16/fp16", "fp32/fp32"),
    ("mobile", WIDE): ("int4/int8", "int8/int8", "fp16/fp16", "fp16/fp16"),
    ("tpu-v4", WIDE): ("int4/bf16", "int8/bf16", "bf16/bf16", "fp32/fp32"),
}


@pytest.mark.parametrize(("target", "layer"), SCALED)
def test_finer_scales_are_executed_where_the_target_has_them(target, layer):
    profile, net = load_profile(target), alone(layer)
    for bits, expected in zip((4, 8, 16, 32), SCALED[target, layer], strict=True):
        assert str(legalize(net, uniform(net, bits), profile, FINE).executed[layer.name]) == expected


def reason_of(target, layer, asked, scaling=PLAIN):
    (fallback,) = legalize(alone(layer), Assignment.of({layer.name: asked}), load_profile(target), scaling).fallbacks
    return f"{fallback.requested} -> {fallback.executed}: {fallback.reason}"


def test_coarser_scales_than_asked_for_are_a_fallback_that_says_so():
    assert reason_of("tpu-v4", WIDE, 4, Scaling(64)) == (
        "int4g64/bf16 -> int4/bf16: for linear tpu-v4 has one scale per output channel and no groups of 64"
    )
    assert reason_of("mobile", WIDE, 8, FINE) == (
        "int8/int8t -> int8/int8: for linear mobile has static scales and none per token"
    )
    assert reason_of("mobile", WIDE, 4, FINE) == (
        "int4g64/int8t -> int4/int8: for linear mobile has one scale per output channel and no groups of 64; "
        "static scales and none per token"
    )
    assert reason_of("a100", linear("l", "x", 192, 192), 4, FINE) == (
        "int4g64/fp16 -> int4/fp16: Marlin's kernels with group scales are for Linear with multiples of 128 inputs "
        "and of 64 outputs"
    )


def test_codes_that_are_not_executed_are_the_first_reason_and_scales_stay_where_they_can():
    assert reason_of("mobile", conv("l", "x", 128, 64, 8), Precision.parse("int4g64/int8")).startswith(
        "int4g64/int8 -> int8/int8: int4 weights only for 1x1"
    )
    # integer activations are not there beside int4 weights, groups are
    assert reason_of("a100", WIDE, Precision.parse("int4g128/int8")) == (
        "int4g128/int8 -> int4g128/fp16: a100 has no int4/int8 for linear"
    )
    # of both, a convolution can keep the groups alone
    assert reason_of("reference", LAYERS["conv"], Precision.parse("int4g32/int8t")).startswith(
        "int4g32/int8t -> int4g32/int8: a scale per token is for Linear"
    )


def test_nothing_is_lost_and_so_nothing_said_where_a_group_has_no_more_inputs_than_the_channel():
    depthwise = conv("l", "x", 64, 64, 8, groups=64)
    for layer in (linear("l", "x", 128, 64), depthwise, LAYERS["pointwise"], attention().layers[0]):
        net = alone(layer)
        asked = uniform(net, 4)
        for target in ("tpu-v4", "reference", "mobile-cpu"):
            profile = load_profile(target)
            assert legalize(net, asked, profile, Scaling(128)) == legalize(net, asked, profile)


@pytest.mark.parametrize("target", ["tpu-v3", "tpu-v4", "a100", "mobile", "mobile-cpu", "reference"])
@pytest.mark.parametrize("scaling", [PLAIN, *map(Scaling, GROUPS), Scaling(32, per_token=True)])
def test_what_is_executed_stays_as_it_is_when_asked_again(target, scaling):
    profile = load_profile(target)
    for net in (residual(), attention()):
        for bits in (4, 8, 16, 32):
            legal = legalize(net, uniform(net, bits), profile, scaling)
            again = legalize(net, legal.executed, profile)
            assert again.executed == legal.executed
            assert again.fallbacks == ()
            for layer in net.layers:
                assert legal.executed[layer.name] in executable(profile, layer)


def test_a_layer_that_is_missing_or_unknown_is_refused():
    net = residual()
    with pytest.raises(InputError, match="a layer has no precision; got 'b'"):
        legalize(net, Assignment.of({"a": 8, "c": 8}), load_profile("a100"))
    with pytest.raises(InputError, match=r"no such layer; got 'layer9'"):
        legalize(net, Assignment.of({**uniform(net, 8), "layer9": 8}), load_profile("a100"))
