"""The table of measured kernels as a correction of the model: exact where measured, the model where nothing is."""

import hashlib
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import conv, linear, residual, uniform

from haq.errors import InputError
from haq.hardware.cost import estimate, plan
from haq.hardware.legalize import legalize
from haq.hardware.likeness import of_kernel
from haq.hardware.lookup import Correction, Likeness, Lookup, Row, read_correction, read_rows, table_text
from haq.hardware.profile import load_profile
from haq.precision import FP32, Assignment
from haq.workload import GlueOp, Workload

GROUP = ("conv", "", "", "fp32")


def at(columns, group=GROUP):
    return Likeness(group, (64.0, float(columns), 64.0, 1.0, 1.0, 1.0))


def row(columns, ratio, noise=0.0):
    return Row(f"conv of {columns}", at(columns), 10.0 * ratio, 10.0, noise)


def test_a_measured_kernel_gets_the_ratio_that_was_measured():
    seen = Correction.of([row(16, 0.5), row(64, 2.0), row(4096, 1.0)])
    assert seen.factor(at(16)) == pytest.approx(0.5, rel=0.01)
    assert seen.factor(at(64)) == pytest.approx(2.0, rel=0.01)


def test_far_from_everything_measured_the_plain_model_is_left():
    seen = Correction.of([row(16, 0.5)])
    assert seen.factor(at(16 * 2.0**60)) == pytest.approx(1.0, abs=1e-3)


def test_a_group_that_was_not_measured_is_left_as_it_is():
    seen = Correction.of([row(16, 0.5)])
    assert seen.factor(at(16, ("conv", "", "", "int8"))) == 1.0
    assert Correction.of([]).factor(at(16)) == 1.0


@given(st.lists(st.floats(0, 60), min_size=2, max_size=8, unique=True).map(sorted), st.floats(0.1, 0.9))
def test_the_weight_of_a_measurement_falls_with_the_distance(octaves, ratio):
    seen = Correction.of([row(1, ratio)])
    pulls = [-math.log(seen.factor(at(2.0**octave))) for octave in octaves]
    assert all(near >= far - 1e-12 for near, far in itertools.pairwise(pulls))
    assert all(-1e-12 <= pull <= -math.log(ratio) for pull in pulls)


def test_between_two_measurements_the_ratio_goes_over_from_one_to_the_other():
    seen = Correction.of([row(16, 0.5), row(64, 0.8)])
    between = [seen.factor(at(columns)) for columns in (16, 24, 32, 48, 64)]
    assert between == sorted(between)


def test_a_noisy_row_counts_for_less():
    clean, noisy = (Correction.of([row(16, 0.5, noise)]).factor(at(16)) for noise in (0.01, 1.0))
    assert clean < noisy < 1.0


def test_the_table_survives_being_written_and_read():
    rows = (row(16, 0.5, 0.01), row(64, 2.0, 0.125))
    assert read_rows(table_text(rows), "t.csv") == rows


def test_a_damaged_table_is_refused_with_its_line():
    text = table_text([row(16, 0.5)]).replace("5,10,0", "5,ten,0")
    with pytest.raises(InputError, match=r"t\.csv, line 2: no measured kernel; got .*'ten'"):
        read_rows(text, "t.csv")
    with pytest.raises(InputError, match="line 2"):
        read_rows("kernel,us\nconv,3\n", "t.csv")


def test_an_absent_or_changed_table_is_an_error_that_names_profile_and_table(tmp_path):
    profile, table = tmp_path / "mine.toml", tmp_path / "mine.csv"
    text = table_text([row(16, 0.5)])
    named = Lookup(table="mine.csv", sha256=hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(InputError, match=r"mine\.toml: .* cannot be read; got '.*mine\.csv: No such file"):
        read_correction(named, profile)
    table.write_text(text)
    assert read_correction(named, profile).factor(at(16)) == pytest.approx(0.5, rel=0.01)
    table.write_text(text.replace("16", "17"))
    with pytest.raises(InputError, match=r"mine\.toml: the profile's table has changed; got '.*mine\.csv"):
        read_correction(named, profile)


def looked_up(profile, rows):
    """The profile with a table."""
    named = Lookup(table="t.csv", sha256="0" * 64)
    return profile.model_copy(update={"lookup": named}).attach(Correction.of(rows))


def test_all_parts_of_a_measured_kernels_time_scale_alike_and_the_totals_see_it():
    plain, net = load_profile("a100"), Workload("one", (("x", (64, 8, 8)),), (conv("c", "x", 64, 64, 8),), ("c",))
    (kernel,), setting = plan(net, plain, 1)
    slower = looked_up(plain, [Row("c", of_kernel(kernel, FP32, setting), 20.0, 10.0, 0.0)])
    executed = legalize(net, uniform(net, 32), plain).executed
    before, after = (estimate(net, executed, profile, batch=1) for profile in (plain, slower))
    for part in ("compute_ms", "memory_ms", "overhead_ms", "latency_ms"):
        assert getattr(after.layers[0], part) == pytest.approx(2 * getattr(before.layers[0], part), rel=0.01)
    assert after.latency_ms - before.latency_ms == pytest.approx(before.layers[0].latency_ms, rel=0.01)
    assert after.traffic_bytes == before.traffic_bytes


def test_a_measured_change_of_format_corrects_the_edges():
    plain, net = load_profile("a100"), residual()
    group = ("convert", "", "image", "fp16>int8")
    slower = looked_up(plain, [Row("change", Likeness(group, (1.0, 1.0, 1.0, 1.0, 1.0, 4096.0)), 30.0, 10.0, 0.0)])
    executed = legalize(net, Assignment.of({"a": 16, "b": 8, "c": 8}), plain).executed
    before, after = (estimate(net, executed, profile, batch=1).converts for profile in (plain, slower))
    assert [c.latency_ms for c in after] == pytest.approx([3 * c.latency_ms for c in before], rel=0.01)


def test_a_batch_adds_rows_to_a_layer_and_elements_to_glue():
    profile = load_profile("a100")
    shape = (16, 64)
    nodes = (linear("l", "x", 64, 64, 16), GlueOp("norm", "norm", ("l",), (shape,), shape))
    kernels, setting = plan(Workload("rows", (("x", shape),), nodes, ("norm",)), profile, 8)
    layer, glue = (of_kernel(kernel, FP32, setting) for kernel in kernels)
    assert layer == Likeness(("gemm", "whole", "", "fp32"), (8 * 16.0, 64.0, 64.0, 1.0, 1.0, 1.0))
    assert glue == Likeness(("glue", "norm", "rows", "fp32"), (1.0, 1.0, 1.0, 1.0, 1.0, 8 * 1024.0))


def test_channels_that_leave_a_block_of_the_device_half_empty_are_another_group():
    profile = load_profile("a100")  # blocks of 64
    net = Workload("narrow", (("x", (16, 64)),), (linear("l", "x", 64, 32, 16),), ("l",))
    (kernel,), setting = plan(net, profile, 1)
    assert of_kernel(kernel, FP32, setting).group == ("gemm", "ragged", "", "fp32")
