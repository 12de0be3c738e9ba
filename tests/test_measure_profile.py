"""A profile out of timed chains: comparisons single out kernels, the fit finds rates, the files load as a target."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
import torch
from nets import residual
from nets import uniform as assigned
from torch import nn

pytest.importorskip("onnxruntime")

from haq.api import search
from haq.cli import main
from haq.errors import InputError
from haq.front import front
from haq.hardware.cost import estimate, plan
from haq.hardware.legalize import legalize
from haq.hardware.likeness import of_kernel
from haq.hardware.profile import build_profile, load_profile
from haq.measure import grid, patterns
from haq.measure.chain import repeated, uniform, within
from haq.measure.cpu import cpu, cpu_cases
from haq.measure.device import Limits, Streams, figure
from haq.measure.fitting import fit_device, limits_of
from haq.measure.machine import OthersWatch, last_cache_bytes
from haq.measure.measure import Measured, measure, open_device
from haq.measure.rows import difference_us, rows_of
from haq.measure.timing import Timing
from haq.measure.writer import write_profile
from haq.precision import Precision
from haq.spacefile import load_space, with_seq_len
from haq.tracecache import workload_of

DAY = datetime.date(2026, 11, 24)
LIMITS = Limits({"fp32": 100e9, "int8": 400e9}, 20e9, 24e6, 80e9, 8e6, 5e-6)


@pytest.fixture(scope="module")
def small():
    """The CPU with a few small comparisons."""
    cases = [patterns.alternating("change", (16, 12, 12), patterns.conv(16), ("fp32", "int8"))]
    for fmt in ("fp32", "int8"):
        cases += [
            repeated("conv", (16, 12, 12), patterns.conv(16, 3), 3, fmt),
            repeated("depthwise", (16, 12, 12), patterns.conv(16, 3, groups=16), 3, fmt),
            repeated("linear", (16, 32), patterns.linear(32), 3, fmt),
            within("add", patterns.with_glue((16, 12, 12), ("add",)), patterns.with_glue((16, 12, 12), ()), fmt),
        ]
    at_once, paused = (
        tuple((2**20 * n, uniform(patterns.streamed(512, n, paused=paused), "fp32")) for n in counts)
        for paused, counts in ((False, (1, 4)), (True, (0, 1, 4)))
    )
    return dataclasses.replace(cpu(1), cases=tuple(cases), streams=Streams(at_once, paused, grid.smallest()))


def modelled(device, profile, slower=lambda bench: 1.0):
    """Timings that the model itself gives, times a factor."""
    return {
        b: Timing(1e-3 * slower(b) * estimate(b.workload, b.executed, profile, batch=1).latency_ms, 0.01, 9)
        for b in device.benches
    }


def test_a_comparison_singles_out_the_kernels_that_one_chain_has_more(small):
    profile = build_profile({"name": "m", **small.document(LIMITS)}, (), "m")
    timings = modelled(small, profile)
    for case in small.cases:
        rows = list(rows_of(case, timings, profile))
        assert rows
        assert all(row.measured_us == pytest.approx(row.modelled_us, rel=1e-6) for row in rows), case.name


def test_of_equal_kernels_the_ends_of_the_network_cancel(small):
    case = next(case for case in small.cases if case.name == "linear fp32")
    once = case.minus[0][1]
    timings = {case.longer: Timing(70e-6, 0.0, 9), once: Timing(30e-6, 0.0, 9)}
    assert difference_us(case, timings) == (pytest.approx(40.0), 0.0)
    profile = build_profile({"name": "m", **small.document(LIMITS)}, (), "m")
    (row,) = rows_of(case, timings, profile)
    assert row.measured_us == pytest.approx(20.0)
    assert row.likeness.group == ("gemm", "whole", "", "fp32")
    assert row.likeness.sizes == (16.0, 32.0, 32.0, 1.0, 1.0, 1.0)


def test_a_difference_that_is_noise_is_no_ratio_of_any_size(small):
    case = next(case for case in small.cases if case.name == "linear fp32")
    timings = {case.longer: Timing(30e-6, 0.1, 9), case.minus[0][1]: Timing(31e-6, 0.1, 9)}
    profile = build_profile({"name": "m", **small.document(LIMITS)}, (), "m")
    (row,) = rows_of(case, timings, profile)
    assert row.measured_us == pytest.approx(row.modelled_us / 30)
    assert row.noise > 1


def test_weights_count_as_kept_up_to_the_size_that_half_comes_from_the_cache(small):
    # at once 1 ns a byte for 1 MiB, 3 for 4; after a pause 1 ns for 1 MiB and 3 for 4: 2 ns half way between
    spent = (2**20 * 1e-9, 2**22 * 3e-9)
    times = {bench: t for (_, bench), t in zip(small.streams.at_once, spent, strict=True)}
    times |= {bench: 1.0 + t for (_, bench), t in zip(small.streams.paused, (0.0, *spent), strict=True)}
    timings = {bench: Timing(t, 0.01, 9) for bench, t in times.items()} | {small.streams.smallest: Timing(2e-6, 0.1, 9)}
    found = limits_of((), small.streams, timings)
    assert found.operations_per_s == {}
    assert (found.cache_bytes, found.kept_bytes) == (pytest.approx((2**20 + 2**22) / 2),) * 2
    assert (found.bytes_per_s, found.cache_bytes_per_s) == (pytest.approx(1e9 / 3), pytest.approx(1e9))
    assert found.inference_s == 2e-6


def test_a_machine_too_busy_to_tell_one_kernel_from_the_next_is_said_to_be(small):
    timings = dict.fromkeys(small.benches, Timing(1e-3, 0.5, 9))
    with pytest.raises(InputError, match=r"no fp32 kernel stands out of the noise; .* measure again"):
        limits_of(small.cases, small.streams, timings)


def test_the_fit_finds_that_one_class_is_slower_than_expected(small):
    document = small.document(LIMITS)
    profile = build_profile({"name": "m", **document}, (), "m")
    found = fit_device(small, modelled(small, profile, lambda b: 3.0 if "linear" in b.workload.name else 1.0))
    values = found.result.values
    assert values["overhead.kernel.gemm"] > 2 * values["overhead.kernel.conv"]
    assert figure(found.document, "overhead.kernel.gemm")["status"] == "fitted"


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """A profile of this machine, of a second's timing, with its table."""
    out = tmp_path_factory.mktemp("profile") / "mine.toml"
    measured = measure(small, 1.0, lambda done, total: None)
    write_profile(out, measured, DAY)
    return out, measured


def test_what_is_written_loads_as_a_target_and_says_that_it_was_measured(written):
    out, measured = written
    profile = load_profile(str(out))
    assert (profile.name, profile.confidence, profile.runtime) == ("mine", "measured device", measured.device.runtime)
    assert profile.title == measured.device.title
    assert profile.lookup is not None
    assert profile.lookup.table == "mine.csv"
    assert len(profile.fits[0].residuals) == len(measured.device.cases)
    for where, one in profile.figures():
        assert one.source, where


def test_a_measured_kernel_is_priced_as_it_was_measured(written):
    out, measured = written
    profile = load_profile(str(out))
    for case in measured.device.cases:
        plain = profile.model_copy(update={"lookup": None})
        rows = [row for row in rows_of(case, measured.timings, plain) if row.noise < 0.02]
        for row in rows:
            assert profile.correction.factor(row.likeness) == pytest.approx(row.measured_us / row.modelled_us, rel=0.05)


def test_bit_widths_mean_what_the_runtime_multiplies(written):
    profile, net = load_profile(str(written[0])), residual()
    legal = {bits: legalize(net, assigned(net, bits), profile) for bits in (4, 8, 16, 32)}
    executed = {bits: {str(p) for p in found.executed.values()} for bits, found in legal.items()}
    assert executed == {4: {"int8/int8"}, 8: {"int8/int8"}, 16: {"fp32/fp32"}, 32: {"fp32/fp32"}}
    assert "unpacks it in every inference" in legal[4].fallbacks[0].reason
    assert "no fp16 arithmetic" in legal[16].fallbacks[0].reason


def test_a_search_for_this_machine_finds_a_front_with_its_latencies(written, tmp_path):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 3, 12, 12, generator=generator)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 3)
    model = nn.Sequential(*layers).eval()
    with torch.inference_mode():
        labels = model(inputs).argmax(dim=1)
    found = search(
        model,
        calibration=[(inputs,)],
        evaluate=lambda candidate: (candidate(inputs).argmax(dim=1) == labels).double().numpy(),
        target=str(written[0]),
        out=tmp_path / "run",
        spec={"search": {"trials": 4, "storage": "none"}},
    )
    points = front(found.history.candidates, "mine")
    assert points
    record = json.loads((tmp_path / "run" / "run.json").read_text())["targets"]["mine"]
    assert record["confidence"] == "measured device"


def test_a_price_on_the_command_line_takes_the_profile_as_a_target(written, capsys):
    out, _ = written
    assert main(["estimate", "--space", "mnist_resnet18", "--target", str(out), "--bits", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latency_ms"] > 0


def test_without_its_table_the_profile_is_refused_in_one_line(written, tmp_path, capsys):
    out, _ = written
    alone = tmp_path / "mine.toml"
    alone.write_text(out.read_text())
    assert main(["estimate", "--space", "mnist_resnet18", "--target", str(alone), "--bits", "8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "mine.toml: the profile's table cannot be read" in error
    assert "mine.csv" in error
    (tmp_path / "mine.csv").write_text(out.with_suffix(".csv").read_text() + "\n")
    assert main(["estimate", "--space", "mnist_resnet18", "--target", str(alone), "--bits", "8"]) == 2
    assert "table has changed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def grid_rows():
    """A row for every kernel of the whole grid, as the model itself times it."""
    device = dataclasses.replace(cpu(1), cases=cpu_cases(2**20))
    profile = build_profile({"name": "m", **device.document(LIMITS)}, (), "m")
    timings = modelled(device, profile)
    return profile, [row for case in device.cases for row in rows_of(case, timings, profile)]


def test_the_grid_has_unique_names():
    cases = cpu_cases(2**20)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    benches = {bench for case in cases for bench in case.benches}
    assert len({bench.name for bench in benches}) == len(benches)


def test_the_grid_covers_every_class_in_both_formats(grid_rows):
    groups = {row.likeness.group for row in grid_rows[1]}
    for fmt in ("fp32", "int8"):
        assert {(c, f) for c, f, _, a in groups if a == fmt} >= {
            *((c, f) for c in ("conv", "depthwise") for f in ("whole", "ragged")),
            ("gemm", "whole"), ("attention", "whole"), ("lookup", ""),
            *(("glue", kind) for kind in ("add", "mul", "smooth", "norm", "softmax", "pool", "reduce", "reshape")),
        }  # fmt: skip
    assert ("convert", "", "image", "fp32>int8") in groups
    assert ("convert", "", "rows", "int8>fp32") in groups


@pytest.mark.parametrize(
    ("space", "tokens"), [("resnet18", None), ("mobilenet_v3_small", None), ("reviews_minilm", 128)]
)
def test_no_layer_of_the_networks_that_the_results_are_checked_on_is_in_the_grid(grid_rows, space, tokens):
    pytest.importorskip("transformers")
    profile, rows = grid_rows
    seen = {row.likeness for row in rows}
    named = load_space(space)
    kernels, setting = plan(workload_of(named if tokens is None else with_seq_len(named, tokens)), profile, 1)
    layers = [kernel for kernel in kernels if kernel.head is not None and kernel.head.gemm is not None]
    assert layers
    for kernel in layers:
        for precision in map(Precision.parse, ("fp32", "int8")):
            assert of_kernel(kernel, precision, setting) not in seen, kernel.name


def test_the_last_cache_is_read_from_the_system(tmp_path):
    for index, (kind, size) in enumerate((("Data", "32K"), ("Instruction", "64M"), ("Unified", "8192K"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "type").write_text(f"{kind}\n")
        (folder / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 8 * 2**20
    assert last_cache_bytes(tmp_path / "absent") is None


def test_what_other_programs_take_of_the_cores_is_what_the_system_was_busy_with_beyond_us(monkeypatch):
    times = iter([(100.0, 5.0, 50.0), (110.0, 9.0, 58.0)])
    monkeypatch.setattr(OthersWatch, "_now", lambda self: next(times))
    watch = OthersWatch(cores=2)
    watch.start()
    # ten seconds of two cores: eight were busy, four of them with us
    assert watch.share() == pytest.approx(4 / 20)


def test_where_the_system_does_not_tell_the_share_is_unknown(monkeypatch):
    monkeypatch.setattr("haq.measure.machine.busy_s", lambda: None)
    watch = OthersWatch(cores=2)
    watch.start()
    assert watch.share() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], "unknown device; got 'tpu'; expected one of cpu, cuda"),
        (["--device", "cuda"], "no CUDA device; got"),
        (["--threads", "4096"], "--threads: no such number of threads; got 4096; expected 1 to"),
        (["--seconds", "0.01"], "--seconds: too little time for repeats; got '0.01'; expected at least"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(arguments, words, tmp_path, capsys):
    assert main(["measure", "--out", str(tmp_path / "mine.toml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["mine.json", "", "file/mine.toml", "/proc/mine.toml"])
def test_a_path_that_no_profile_can_be_written_to_is_refused_before_anything_is_measured(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["measure", "--out", str(tmp_path / name) if name else str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--out: " in error
    assert error.count("\n") == 1


def test_an_unknown_device_is_an_input_error():
    with pytest.raises(InputError, match="unknown device"):
        open_device("npu", None)


def test_measured_values_hold_what_was_timed(written):
    _, measured = written
    assert isinstance(measured, Measured)
    assert set(measured.timings) == set(measured.device.benches)
    assert all(np.isfinite(t.median_s) and t.repeats >= 3 for t in measured.timings.values())
