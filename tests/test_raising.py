"""Raised layers and the bench that measures them, on a small real network against plain torch."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export_nets import exportable_of, picture_bundle, text_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from haq.diagnose.finding import Change, Repair
from haq.errors import InputError
from haq.nn.diagnosis.bench import cut, open_bench
from haq.nn.diagnosis.raising import Raiser
from haq.nn.diagnosis.subject import subject_of
from haq.nn.exportable import how_quantized
from haq.nn.quantizers import QuantizedWeight
from haq.nn.task import Batch, CallableTask, ClassificationTask
from haq.precision import Precision

FP32 = Precision.parse("fp32")


def case(formats="int8/int8", text=False):
    what = exportable_of(text_bundle() if text else picture_bundle(), formats)
    subject = subject_of(what)
    raiser = Raiser(subject, tuple(what.task.calibration()), how_quantized(what.config), what.calibration)
    return SimpleNamespace(what=what, subject=subject, raiser=raiser, x=what.task.splits["search"][0].inputs)


@pytest.fixture(scope="module")
def pictures():
    return case()


def answers(model, inputs):
    with torch.inference_mode():
        return model(*inputs)


def raise_all(case, precision="fp32"):
    return case.raiser(case.subject, dict.fromkeys(case.subject.workload.layer_names, Precision.parse(precision)))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("formats", ["int8/int8", "int4/int8", "fp16", "int4/fp16"])
def test_everything_raised_is_fp32(text, formats) -> None:
    """To the last bit, but where attention is taken apart into the products that are watched."""
    made = case(formats, text)
    assert not torch.equal(answers(made.subject.build(), made.x), answers(made.what.model, made.x))
    raised, exact = answers(raise_all(made).build(), made.x), answers(made.what.model, made.x)
    assert torch.equal(raised, exact) or (text and torch.allclose(raised, exact, atol=1e-6))


def test_what_a_target_does_to_integer_results_ends_with_the_integers(pictures) -> None:
    names = pictures.subject.workload.layer_names
    forced = pictures.subject.with_(
        accumulators={"head": "int8"}, join_steps={names[0]: 0.5}, forced_steps={names[1]: 0.5, "head": 0.5}
    )
    raised = pictures.raiser(forced, {"head": FP32})
    assert (raised.accumulators, raised.join_steps) == ({}, {names[0]: 0.5})
    assert raised.forced_steps == {names[1]: 0.5}
    kept = pictures.raiser(forced, {"head": Precision.parse("int4/int8")})
    assert kept.accumulators == {"head": "int8"}
    for precision in ("fp32/int8", "int8/fp32"):
        assert pictures.raiser(forced, {"head": Precision.parse(precision)}).accumulators == {}
    everything = pictures.raiser(forced, dict.fromkeys(names, FP32))
    assert torch.equal(answers(everything.build(), pictures.x), answers(pictures.what.model, pictures.x))


def test_a_raised_weight_is_the_networks_own_and_its_operand_stays_as_it_is(pictures) -> None:
    subject = pictures.subject
    raised = pictures.raiser(subject, {"stem": Precision.parse("fp32/int8")})
    assert torch.equal(raised.numbers.weights["stem.weight"], pictures.what.model.get_parameter("stem.weight"))
    assert raised.numbers.quantizers == subject.numbers.quantizers
    assert raised.numbers.weights["head.weight"] is subject.numbers.weights["head.weight"]
    # By hand: the input rounded, the weight of FP32.
    seen = {}
    model = raised.build()
    model.stem.register_forward_hook(lambda module, args, y: seen.update(y=y))
    answers(model, pictures.x)
    own = pictures.what.model.stem
    rounded = subject.numbers.quantizers["stem", 0](pictures.x[0])
    want = functional.conv2d(rounded, own.weight, own.bias, padding=1)
    assert torch.allclose(seen["y"], want, atol=1e-5)


def test_a_raised_operand_is_not_rounded_and_the_weight_stays_as_it_is(pictures) -> None:
    subject = pictures.subject
    raised = pictures.raiser(subject, {"stem": Precision.parse("int8/fp32")})
    assert raised.numbers.weights["stem.weight"] is subject.numbers.weights["stem.weight"]
    assert ("stem", 0) not in raised.numbers.quantizers
    seen = {}
    model = raised.build()
    model.stem.register_forward_hook(lambda module, args, y: seen.update(y=y))
    answers(model, pictures.x)
    stored = subject.numbers.weights["stem.weight"].dequantize()
    want = functional.conv2d(pictures.x[0], stored, subject.numbers.biases["stem.bias"], padding=1)
    assert torch.allclose(seen["y"], want, atol=1e-5)


def test_new_integers_are_those_of_a_config_that_asks_for_them() -> None:
    low, high = case("int4/int8"), case("int8/int8")
    raised = low.raiser(low.subject, {"stem": Precision.parse("int8/int8")})
    fresh, asked = raised.numbers.weights["stem.weight"], high.subject.numbers.weights["stem.weight"]
    assert isinstance(fresh, QuantizedWeight)
    assert torch.equal(fresh.codes, asked.codes)
    assert torch.equal(fresh.scales, asked.scales)


def test_what_is_wrong_with_a_weight_stays_where_it_stays_in_its_format(pictures) -> None:
    numbers = pictures.subject.numbers
    stored = numbers.weights["stem.weight"]
    broken = {**numbers.weights, "stem.weight": replace(stored, scales=stored.scales * 2)}
    subject = pictures.subject.with_(numbers=replace(numbers, weights=broken))
    kept = pictures.raiser(subject, {"stem": Precision.parse("int8/fp32")})
    assert kept.numbers.weights["stem.weight"] is broken["stem.weight"]
    assert pictures.raiser(subject, {}) is subject


# bench


def open_case(formats="int8/int8", **sizes):
    what = exportable_of(picture_bundle(), formats)
    subject = subject_of(what)
    return open_bench(what, subject, cut(what.task, **sizes))[0], what


def test_the_bench_measures_divergence_and_answers_per_sample() -> None:
    bench, what = open_case(looked=8, judged=20)
    assert (bench.samples, bench.layers) == (20, what.workload.layer_names)
    data = cut(what.task, looked=8, judged=20).judged.splits["search"][0]
    exact, made = answers(what.model, data.inputs), answers(bench.subject.build(), data.inputs)
    log = [functional.log_softmax(y.double(), dim=1) for y in (exact, made)]
    want = (log[0].exp() * (log[0] - log[1])).sum(1).numpy()
    outcome = bench.measure(Change())
    # Samples come in groups of one shape, in order.
    assert np.sort(outcome.kl) == pytest.approx(np.sort(want), rel=1e-3, abs=1e-7)
    assert outcome.value == pytest.approx(float((made.argmax(1) == data.labels).float().mean()))
    assert bench.fp32().kl == pytest.approx(np.zeros(20), abs=1e-12)
    raised = Change(raised=tuple((layer, bench.widest(layer)) for layer in bench.layers))
    assert bench.measure(raised).kl == pytest.approx(np.zeros(20), abs=1e-12)


def test_equal_changes_are_measured_once() -> None:
    bench, _ = open_case(looked=8, judged=16)
    first = bench.measure(Change(raised=(("stem", FP32), ("head", FP32))))
    before = bench.forwards
    here = Precision.parse("int8/int8")
    assert bench.measure(Change(raised=(("head", FP32), ("pointwise", here), ("stem", FP32)))) is first
    assert bench.forwards == before == 32  # FP32 and this one
    bench.measure(Change((Repair("bias", "stem"),)))
    assert bench.forwards == 48


def test_a_network_that_is_not_finite_in_fp32_cannot_be_judged() -> None:
    what = exportable_of(picture_bundle(), "int8/int8")
    search = what.task.splits["search"][0]
    x = search.inputs[0].clone()
    x[5] = torch.nan
    bad = ClassificationTask({"search": (Batch((x,), search.labels),)}, what.task.calibration(), "7")
    data = replace(cut(what.task, looked=8), judged=bad)
    bench, _ = open_bench(what, subject_of(what), data)
    with pytest.raises(InputError, match=r"not finite in FP32.*1 of 32 samples"):
        bench.fp32()


# samples


def numbered(*lengths):
    """Samples that are their own number, in batches."""
    batches, start = [], 0
    for length in lengths:
        rows = torch.arange(start, start + length)
        batches.append(Batch((rows.float().reshape(-1, 1),), rows))
        start += length
    return ClassificationTask({"search": tuple(batches)}, (), "7")


def rows_of(batches):
    return [int(value) for batch in batches for value in batch.flatten()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 64), st.integers(1, 300))
def test_samples_looked_at_and_judged_are_disjoint_and_have_their_own_labels(lengths, looked, judged) -> None:
    total = sum(lengths)
    if total < 2:
        with pytest.raises(InputError, match="too few samples"):
            cut(numbered(*lengths), looked=looked, judged=judged)
        return
    found = cut(numbered(*lengths), looked=looked, judged=judged)
    seen = rows_of(x for (x,) in found.looked)
    others = rows_of(batch.inputs[0] for batch in found.judged.splits["search"])
    assert others == rows_of(batch.labels for batch in found.judged.splits["search"])
    assert len(set(seen)) == len(seen) == min(looked, total // 2)
    assert len(set(others)) == len(others) == found.size == min(judged, total - len(seen))
    assert not set(seen) & set(others)
    assert set(seen) | set(others) <= set(range(total))


def test_samples_are_spread_over_the_split() -> None:
    found = cut(numbered(50, 50), looked=10, judged=30)
    assert rows_of(x for (x,) in found.looked) == list(range(0, 100, 10))
    others = rows_of(batch.inputs[0] for batch in found.judged.splits["search"])
    assert max(np.diff(sorted(others))) <= 5
    assert others[0] < 5
    assert others[-1] > 95


def test_a_task_that_measures_by_itself_is_judged_whole_and_looked_at_by_its_calibration_data() -> None:
    calibration = (torch.arange(6.0).reshape(-1, 1),)
    task = CallableTask(lambda model, split: 0.5, (calibration,), "7")
    found = cut(task, looked=4)
    assert found.judged is task
    assert found.size == 0
    assert len(rows_of(x for (x,) in found.looked)) == 4
