"""`haq compare-targets`: regrets by arithmetic, choices as `pick` makes them, prices of the run's day and of today."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from machines import chain, machine, one
from nets import attention, conv, uniform

from haq.accuracy import compare
from haq.candidate import Candidate, TargetResult
from haq.cli import main
from haq.constraints import Constraints
from haq.errors import InfeasibleError, InputError
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.hardware.size import fp32_size_bytes
from haq.hardware.table import cost_table
from haq.history import SEARCH, Baseline, History
from haq.precision import Assignment
from haq.problems import content_hash
from haq.regret import Choice, Priced, as_recorded, cheapest, choices_of_run, priced_now, regret_matrix
from haq.rundir import RunRequest, open_run
from haq.scaling import Scaling
from haq.space import Rule, build_space
from haq.spacefile import load_space
from haq.spec import spec_from
from haq.tracecache import workload_of

LAYERS = ("a", "b")
RIGHT = np.array([1.0] * 90 + [0.0] * 10)
MEANT = {
    "tpu-v4": {4: "int4/bf16", 8: "int8/bf16", 16: "bf16", 32: "fp32"},
    "a100": {4: "int8", 8: "int8", 16: "fp16", 32: "fp32"},
}
MS = {"tpu-v4": {4: 1.0, 8: 1.1, 16: 1.2, 32: 6.0}, "a100": {4: 2.0, 8: 2.0, 16: 3.0, 32: 8.0}}
WRONG = {4: 5, 8: 1, 16: 0, 32: 0}
"""Of 100 samples, further ones that go wrong when all layers take so many bits; 8 on the A100 is what 4 runs as."""


def executed(target, bits, layers=LAYERS):
    return Assignment.from_json(dict.fromkeys(layers, MEANT[target][bits]))


def result(target, bits, layers, *, measured=True):
    wrong = RIGHT.copy()
    wrong[: WRONG[8 if target == "a100" and bits == 4 else bits]] = 0.0
    costs = {"latency_ms": MS[target][bits], "size_bytes": bits * 1e5}
    measurement = compare(RIGHT, wrong, SEARCH) if measured else None
    return TargetResult(target, executed(target, bits, layers), (), costs, measurement)


def history(layers=LAYERS, base_costs=None, *, measured=False):
    """All four uniform assignments; 4 bits on the TPU only where `measured`."""
    candidates = tuple(
        Candidate(
            n, f"seed:uniform{bits}", Assignment.uniform(layers, bits),
            (result("tpu-v4", bits, layers, measured=measured or bits != 4), result("a100", bits, layers)),
        )
        for n, bits in enumerate((4, 8, 16, 32))
    )  # fmt: skip
    base = compare(RIGHT, RIGHT, SEARCH)
    costs = base_costs or {"latency_ms": 8.0, "size_bytes": 3.2e6}
    return History(Baseline("fp32", {SEARCH: RIGHT}, {SEARCH: base}, dict.fromkeys(MEANT, costs)), candidates)


@pytest.fixture
def write_run(tmp_path: Path):
    """Writes a run directory; `profiles` are the hashes that it recorded."""

    def write(found: History, *, space="tiny", profiles=None, targets=tuple(MEANT)) -> Path:
        spec = spec_from(
            {"scope": {"space": space}, "hardware": {"targets": targets}, "accuracy": {"max_drop_points": 2}},
            where="test",
        )
        about = {t: {"batch": 1, "confidence": "facts only", "latency_spread": 0.5, "title": t} for t in targets}
        provenance = {"model": space, "profiles": profiles or {}}
        request = RunRequest(spec.to_json(), {"sampler": "tpe", "seed": 0}, provenance, about, {"groups": []})
        with open_run(tmp_path / "run", request) as opened:
            opened.writer.append("baseline", found.baseline.to_json())
            for candidate in found.candidates:
                opened.writer.append("candidate", candidate.to_json())
        return tmp_path / "run"

    return write


def today() -> dict[str, str]:
    return {name: content_hash(load_profile(name)) for name in MEANT}


def haq(capsys, *arguments):
    code = main(["compare-targets", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_regret_is_relative_to_the_targets_own_choice():
    costs = {("t", "t"): 2.0, ("t", "u"): 6.0, ("u", "t"): 3.0, ("u", "u"): 4.0}
    choices = [Choice(name, Assignment.of({"a": 8})) for name in "tu"]
    found = regret_matrix(choices, "latency", lambda c, on: Priced({"latency_ms": costs[c.target, on]}))
    assert [[cell.value for cell in row] for row in found.cells] == [[2, 6], [3, 4]]
    assert [[cell.regret for cell in row] for row in found.cells] == [[0, 0.5], [0.5, 0]]


def test_an_unknown_figure_is_refused_and_not_taken_as_zero():
    choices = [Choice(name, Assignment.of({"a": 8})) for name in "tu"]
    with pytest.raises(InputError, match="energy_mj is unknown on target 't'"):
        regret_matrix(choices, "energy", lambda *_: Priced({"latency_ms": 1.0}))


def test_each_targets_choice_is_the_point_that_pick_takes():
    found = history()
    assert [c.candidate for c in choices_of_run(found, tuple(MEANT), Constraints(), "latency")] == [1, 0]
    # without a drop, 16 bits are the fastest on both
    exact = choices_of_run(found, tuple(MEANT), Constraints(max_drop_points=0), "latency")
    assert [c.candidate for c in exact] == [2, 2]


def test_a_cell_tells_the_drop_of_exactly_what_runs_there_or_that_nobody_measured_it():
    found = history()
    choices = choices_of_run(found, tuple(MEANT), Constraints(), "latency")
    rows = regret_matrix(choices, "latency", as_recorded(found), found).cells
    # 8 bits of the TPU cost one sample of 100; 4 bits of the A100 run as int8 there, and were not measured on the TPU
    assert rows[0][0].drop_points == pytest.approx(1)
    assert rows[1][1].drop_points == pytest.approx(1)
    assert rows[1][0].drop_points is None
    assert rows[1][0].regret == pytest.approx(1.0 / 1.1 - 1)
    assert rows[1][0].to_json()["measured"] is False


COMPUTE = one(conv("c", "x", 64, 64, 64))


@pytest.mark.parametrize(
    ("limit_bytes", "rules", "bits"),
    [
        (None, (), 8),  # 4 bits multiply as int8, no faster: the wider one is taken
        # 36,864 weights with 64 scales of four bytes, and 5 for the input's: 37,125 bytes at 8 bits, 18,693 at 4
        (30_000, (), 4),
        (None, (Rule("*", (16, 32)),), 16),
    ],
)
def test_the_cheapest_by_cost_alone_takes_no_bits_away_for_nothing(limit_bytes, rules, bits):
    tables = [cost_table(COMPUTE, machine(), batch=1)]
    (found,) = cheapest(tables, build_space(COMPUTE, rules), "latency", limit_bytes)
    assert found == Choice("reference", Assignment.of({"c": bits}))


def test_the_smallest_takes_the_fewest_bits():
    (found,) = cheapest([cost_table(chain(), machine(), batch=1)], build_space(chain()), "size")
    assert set(found.requested.values()) == {4}


def test_a_size_that_cannot_be_reached_names_the_smallest():
    table = cost_table(COMPUTE, machine(), batch=1)
    with pytest.raises(InfeasibleError, match=r"no assignment within 0.01 MB on reference: .* 0.018693 MB"):
        cheapest([table], build_space(COMPUTE), "latency", 10_000)


@pytest.mark.parametrize("target", ["a100", "tpu-v4", "mobile"])
def test_no_uniform_assignment_is_faster_than_the_cheapest(target):
    net, profile = attention(), load_profile(target)
    (choice,) = cheapest([cost_table(net, profile, batch=4)], build_space(net), "latency")
    times = [
        estimate(net, legalize(net, asked, profile).executed, profile, batch=4).latency_ms
        for asked in (choice.requested, *(uniform(net, bits) for bits in (4, 8, 16, 32)))
    ]
    assert times[0] <= min(times[1:]) * (1 + 1e-12)


def test_a_run_is_compared_by_its_own_prices_while_its_profiles_are_the_same(write_run, capsys):
    code, out, _ = haq(capsys, write_run(history(), profiles=today()), "--json")
    found = json.loads(out)
    assert code == 0
    assert "note" not in found
    assert found["figure"] == "latency_ms"
    assert {target: best["candidate"] for target, best in found["best"].items()} == {"tpu-v4": 1, "a100": 0}
    cells = {(cell["best_of"], cell["on"]): cell for cell in found["cells"]}
    assert cells["tpu-v4", "a100"]["regret_percent"] == pytest.approx(0)
    assert cells["a100", "tpu-v4"]["value"] == 1.0
    assert "drop_points" not in cells["a100", "tpu-v4"]
    assert found["targets"]["a100"] == {"confidence": "facts only", "latency_spread": 0.5}


def test_the_table_names_candidates_units_and_what_was_not_measured(write_run, capsys):
    _, out, _ = haq(capsys, write_run(history(), profiles=today()), "--max-drop", "0.5")
    assert "candidate 2" in out
    _, out, _ = haq(capsys, write_run(history(), profiles=today()))
    for text in ("1.1 ms", "best", "-9.1 %", "drop +1.00", "not measured", "+-50 % (facts only)", "below 0 %"):
        assert text in out


def test_a_drop_above_what_was_allowed_is_marked(write_run, capsys):
    run = write_run(history(measured=True), profiles=today())
    # 4 bits lose one sample of 100 on the A100, which runs int8, and five on the TPU
    _, out, _ = haq(capsys, run, "--minimize", "size")
    assert "drop +5.00 > 2" in out  # of the spec
    _, out, _ = haq(capsys, run, "--minimize", "size", "--max-drop", "4")
    assert "drop +5.00 > 4" in out
    _, out, _ = haq(capsys, run, "--minimize", "size", "--max-drop", "6")
    assert "drop +5.00 >" not in out


def test_a_run_whose_profiles_have_changed_is_priced_anew_and_says_so(write_run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    net = workload_of(load_space("resnet18"))
    base = {"latency_ms": 8.0, "size_bytes": fp32_size_bytes(net), "macs": net.macs}
    run = write_run(history(net.layer_names, base), space="resnet18", profiles={**today(), "a100": "0" * 16})
    _, out, _ = haq(capsys, run, "--json")
    found = json.loads(out)
    assert found["note"] == "profiles that have changed since the run: a100; prices are today's"
    cell = next(c for c in found["cells"] if (c["best_of"], c["on"]) == ("a100", "tpu-v4"))
    profile = load_profile("tpu-v4")
    executed_there = legalize(net, Assignment.uniform(net.layer_names, 4), profile).executed
    assert cell["value"] == pytest.approx(estimate(net, executed_there, profile, batch=1).latency_ms)
    # what 8 bits run as on the TPU is what was measured
    own = next(c for c in found["cells"] if (c["best_of"], c["on"]) == ("tpu-v4", "tpu-v4"))
    assert own["drop_points"] == pytest.approx(1)


def test_another_network_than_the_runs_is_refused(write_run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    code, out, err = haq(capsys, write_run(history(), space="resnet18"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the network is not the one of the run" in err


def test_a_network_that_was_in_memory_keeps_the_prices_of_its_run(write_run, capsys):
    _, out, _ = haq(capsys, write_run(history()))
    assert "its network was in memory, so prices are as it recorded them" in out


def test_the_users_own_space_has_to_be_given_again(write_run, capsys):
    code, out, err = haq(capsys, write_run(history(), space="own.toml"))
    assert (code, out) == (2, "")
    assert "--space again" in err


def test_without_a_run_the_cost_model_alone_compares(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HAQ_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ("-s", "resnet18", "-t", "a100", "-t", "mobile", "--batch", "8")
    _, out, _ = haq(capsys, *arguments)
    assert "accuracy is not in it" in out
    assert "drop" not in out
    _, out, _ = haq(capsys, *arguments, "--json")
    cells = json.loads(out)["cells"]
    assert [(c["best_of"], c["on"]) for c in cells] == [(i, j) for i in ("a100", "mobile") for j in ("a100", "mobile")]
    assert [c["regret_percent"] for c in cells if c["best_of"] == c["on"]] == [0, 0]
    assert min(c["regret_percent"] for c in cells) > -1e-9
    assert not any(c["measured"] for c in cells)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--space and two or more --target"),
        (("absent",), 2, "run.json"),
        (("-s", "resnet18", "-t", "a100"), 2, "two or more different targets"),
        (("-s", "resnet18", "-t", "a100", "-t", "a100"), 2, "two or more different targets"),
        (("-s", "resnet18", "-t", "a100", "-t", "a10"), 2, "'a100'"),
        (("-s", "resnet18", "-t", "a100", "-t", "mobile", "--max-drop", "1"), 2, "--max-drop"),
        (("-s", "resnet18", "-t", "a100", "-t", "mobile", "--minimize", "speed"), 2, "latency"),
        (("RUN", "-t", "a100"), 2, "--target"),
        (("RUN", "--max-size-mb", "1"), 2, "--max-size-mb"),
        (("RUN", "--max-drop", "-1"), 3, "nearest"),
        (("RUN", "--minimize", "energy"), 2, "energy_mj is unknown"),
    ],
)
def test_wrong_requests_are_one_line(write_run, capsys, arguments, code, says):
    run = write_run(history(), profiles=today())
    found, out, err = haq(capsys, *(str(run) if a == "RUN" else a for a in arguments))
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert says in err


def test_a_run_on_one_target_has_nothing_to_compare(write_run, capsys):
    found = history()
    alone = tuple(Candidate(c.number, c.origin, c.requested, c.results[1:]) for c in found.candidates)
    run = write_run(History(found.baseline, alone), targets=("a100",))
    code, _, err = haq(capsys, run)
    assert (code, err.count("\n")) == (2, 1)
    assert "one target has nothing to be compared with" in err


def test_a_key_at_its_default_does_not_change_what_a_profile_is() -> None:
    a100 = load_profile("a100")
    said = a100.model_copy(update={"on_chip": a100.on_chip.model_copy(update={"keeps_weights": False})})
    kept = a100.model_copy(update={"on_chip": a100.on_chip.model_copy(update={"keeps_weights": True})})
    assert content_hash(said) == content_hash(a100)
    assert content_hash(kept) != content_hash(a100)


def test_prices_of_today_are_for_the_scales_that_the_run_asked_for():
    net, fine = attention(), Scaling(32, per_token=True)
    priced = priced_now(net, {"reference": load_profile("reference")}, {"reference": 1}, fine)
    executed = priced(Choice("reference", uniform(net, 4)), "reference").executed
    assert str(executed["q"]) == "int4g32/int8t"
