"""Which layers are asked for finer scales, and by which names a spec asks for them."""

import pytest
from nets import attention, conv, linear

from haq.errors import InputError
from haq.precision import Precision
from haq.scaling import PLAIN, TECHNIQUES, Scaling


def asked(layer, precision, **scaling):
    return str(Scaling(**scaling).asked(layer, Precision.parse(precision)))


def test_the_names_of_a_spec_say_groups_and_tokens():
    assert TECHNIQUES == ("group_32", "group_64", "group_128", "per_token")
    assert Scaling.of([]) == PLAIN == Scaling(None, False)
    assert Scaling.of(["cross_layer", "group_64"]) == Scaling(64)
    assert Scaling.of(["per_token", "group_128"]) == Scaling(128, per_token=True)


def test_two_sizes_of_groups_and_an_unknown_one_are_refused():
    with pytest.raises(InputError, match="groups of one size; got 'group_32, group_128'"):
        Scaling.of(["group_128", "group_32"])
    with pytest.raises(InputError, match="no such group of weights; got 48; expected one of 32, 64, 128"):
        Scaling(48)


def test_groups_are_for_narrow_weights_of_linear_and_pointwise_layers_with_more_inputs_than_that():
    assert asked(linear("l", "x", 65, 8), "int4/fp16", group=64) == "int4g64/fp16"
    assert asked(linear("l", "x", 64, 8), "int4/fp16", group=64) == "int4/fp16"
    assert asked(linear("l", "x", 65, 8), "int8/int8", group=64) == "int8/int8"
    assert asked(conv("c", "x", 128, 8, 4, kernel=1), "int4/int8", group=64) == "int4g64/int8"
    assert asked(conv("c", "x", 128, 8, 4, kernel=1, groups=4), "int4/int8", group=64) == "int4/int8"  # 32 inputs each
    assert asked(conv("c", "x", 128, 8, 4), "int4/int8", group=64) == "int4/int8"
    assert asked(conv("c", "x", 64, 64, 4, groups=64), "int4/int8", group=32) == "int4/int8"  # nine inputs
    assert asked(attention().layers[0], "int4/fp16", group=32) == "int4/fp16"  # rows of 64


def test_scales_per_token_are_for_what_a_linear_reads():
    assert asked(linear("l", "x", 8, 8), "int8/int8", per_token=True) == "int8/int8t"
    assert asked(linear("l", "x", 8, 8), "int4/fp16", per_token=True) == "int4/fp16"
    assert asked(conv("c", "x", 8, 8, 4, kernel=1), "int8/int8", per_token=True) == "int8/int8"
    assert asked(attention().layers[3], "int8/int8", per_token=True) == "int8/int8"


def test_a_target_whose_bit_width_means_groups_keeps_them_unless_others_are_asked_for():
    wide = linear("l", "x", 256, 8)
    assert asked(wide, "int4g128/fp16") == "int4g128/fp16"
    assert asked(wide, "int4g128/fp16", group=32) == "int4g32/fp16"
