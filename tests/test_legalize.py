"""What each bit-width means on each target (decision 2), and that every change of a request is said."""

import pytest
from nets import attention, conv, linear, residual, uniform

from haq.errors import InputError
from haq.hardware.legalize import executable, legalize, widest
from haq.hardware.profile import load_profile
from haq.precision import Assignment, Precision
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


@pytest.mark.parametrize("target", ["tpu-v3", "tpu-v4", "a100", "mobile", "mobile-cpu", "reference"])
def test_what_is_executed_stays_as_it_is_when_asked_again(target):
    profile = load_profile(target)
    for net in (residual(), attention()):
        for bits in (4, 8, 16, 32):
            legal = legalize(net, uniform(net, bits), profile)
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
