"""`haq front` with limits or another target: on runs of a network in memory, and against all its assignments."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.accuracy import Interval, Measurement
from haq.api import search
from haq.cli import main
from haq.constraints import Constraints
from haq.engine.problem import executed_by
from haq.engine.targets import profile_target
from haq.errors import InfeasibleError, InputError
from haq.hardware.profile import load_profile
from haq.nn.task import Batch, ClassificationTask
from haq.pareto import non_dominated
from haq.pooled import pool
from haq.precision import Assignment, Precision
from haq.quality import KL, Quality, QualityReport
from haq.resolving import Answer, Resolved, resolve
from haq.rundir import SENSITIVITY_FILE, Run, read_run
from haq.sensitivity import Effect, Sensitivity, read_sensitivity, write_sensitivity
from haq.space import Group, SearchSpace
from haq.surrogate import PRIOR_SLOPE
from haq.workload import Workload

NO_LIMITS = Constraints()


class Own(nn.Module):
    """A network that no search space names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(dim=(2, 3)))
        return logits


def made(out: Path, **sections: dict[str, object]) -> Run:
    """A search of `Own` on two targets, with labels that are FP32's own answers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = Own().eval(), torch.randn(512, 1, 8, 8)
    with torch.inference_mode():
        labels = model(inputs).argmax(dim=1)

    def evaluate(candidate: nn.Module) -> NDArray[np.float64]:
        right: NDArray[np.float64] = (candidate(inputs).argmax(dim=1) == labels).double().numpy()
        return right

    spec = {"search": {"trials": 14, "storage": "none", **sections.pop("search", {})}, **sections}
    return search(
        model, calibration=[(inputs[:32],)], evaluate=evaluate, target=["reference", "a100"], out=out, spec=spec
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("resolving") / "run")


def haq(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


def everything(run: Run, found: Resolved) -> NDArray[np.float64]:
    """(64, 3) size, latency and the drop that `resolve` predicts, of all assignments on the target, one by one.

    Infinite where something was not measured.
    """
    workload = Workload.from_json((run.path / "workload.json").read_text())
    view = profile_target(workload, load_profile(found.target.name), batch=found.target.batch)
    space = space_of(run)
    executed = [(r.executed, r.measurement) for c in run.history.candidates for r in c.results if r.measurement]
    known = pool(space, read_sensitivity(run.path / SENSITIVITY_FILE), executed_by(view), list(dict(executed).items()))
    points = np.array(list(itertools.product(*(range(len(group.bits)) for group in space.groups))))
    costs = [view.costs(view.legalize(space.assignment(levels))[0]) for levels in points.tolist()]
    table = np.column_stack([[(c["size_bytes"], c["latency_ms"]) for c in costs], known.predict(points)[0]])
    return np.where(known.known[np.arange(points.shape[1]), points].all(axis=1)[:, None], table, np.inf)


def space_of(run: Run) -> SearchSpace:
    workload = Workload.from_json((run.path / "workload.json").read_text())
    groups = run.info["space"]["groups"].items()
    return SearchSpace(
        workload.layer_names, tuple(Group(name, tuple(g["layers"]), tuple(g["bits"])) for name, g in groups)
    )


def prediction(answer: Answer) -> tuple[float, float, float]:
    return answer.costs["size_bytes"], answer.costs["latency_ms"], answer.predicted_points


@pytest.mark.parametrize("name", ["mobile", "tpu-v4", "t4", "mobile-cpu"])
def test_on_another_target_predicted_points_are_those_that_no_assignment_is_predicted_to_beat(
    run: Run, name: str
) -> None:
    found = resolve(run, name, NO_LIMITS)
    truth = everything(run, found)
    predicted = [answer for answer in found.answers if answer.measurement is None]
    assert predicted
    for answer in predicted:
        point = np.array(prediction(answer))
        slack = 1e-9 * np.abs(point)
        assert not ((truth <= point + slack).all(axis=1) & (truth < point - slack).any(axis=1)).any()
    assert non_dominated([answer.losses for answer in found.answers]).all()
    sizes = [answer.costs["size_bytes"] for answer in found.answers]
    assert sizes == sorted(sizes)
    assert min(sizes) == pytest.approx(truth[:, 0].min())


def test_what_another_target_executes_like_a_target_of_the_run_is_measured(run: Run) -> None:
    found = resolve(run, "mobile", NO_LIMITS)  # fp16 and int8, as on the A100
    measured = {r.executed.signature: r.measurement for c in run.history.candidates for r in c.results}
    for answer in found.answers:
        assert answer.measurement == measured.get(answer.executed.signature)
    everywhere_fp16 = [a for a in found.answers if {str(p) for p in a.executed.values()} == {"fp16/fp16"}]
    assert [a.measurement is not None for a in everywhere_fp16] == [True]
    assert everywhere_fp16[0].requested == Assignment.uniform(everywhere_fp16[0].requested, 16)


def test_formats_that_were_never_measured_are_marked_as_bounds(run: Run) -> None:
    known = read_sensitivity(run.path / SENSITIVITY_FILE)
    for name, some in (("tpu-v4", True), ("reference", False), ("mobile", False)):
        found = resolve(run, name, NO_LIMITS)
        for answer in found.answers:
            groups = [
                Assignment.of({layer: answer.executed[layer] for layer in group.layers})
                for group in space_of(run).groups
            ]
            assert answer.is_bound == any(known.is_bound(piece) for piece in groups)
        assert any(answer.is_bound for answer in found.answers) == some


def test_tighter_limits_on_a_target_of_the_run_hold_and_may_be_met_by_points_that_were_never_asked(run: Run) -> None:
    free = resolve(run, "reference", NO_LIMITS)
    size = float(np.median([answer.costs["size_bytes"] for answer in free.answers]))
    limits = Constraints(max_size_bytes=size, max_drop_points=2.0, max_latency_ms=free.base["latency_ms"])
    found = resolve(run, "reference", limits)
    assert all(answer.costs["size_bytes"] <= size for answer in found.answers)
    assert all(answer.drop_points <= 2.0 for answer in found.answers)


def test_another_batch_is_another_latency(run: Run) -> None:
    one, many = (resolve(run, "a100", NO_LIMITS, batch) for batch in (None, 64))
    assert (one.target.batch, many.target.batch) == (1, 64)
    assert many.base["latency_ms"] > one.base["latency_ms"]
    assert many.base["size_bytes"] == one.base["size_bytes"]


def test_a_limit_on_what_only_measurements_show_admits_nothing_predicted(run: Run) -> None:
    with pytest.raises(InfeasibleError, match="nothing that was measured or is predicted meets the limits"):
        resolve(run, "reference", Constraints(max_class_drop_points=50.0))  # `evaluate` knows no classes


def test_limits_that_nobody_meets_name_what_is_nearest(run: Run) -> None:
    with pytest.raises(InfeasibleError, match=r"smallest reachable size is .*; relax --max-size-mb to ") as error:
        resolve(run, "reference", Constraints(max_size_bytes=100.0))
    asked = str(error.value).split("relax --max-size-mb to ")[1]
    assert resolve(run, "reference", Constraints(max_size_bytes=float(asked) * 1e6)).answers
    # FP32's size is what no narrow format drops at.
    smallest = min(a.costs["size_bytes"] for a in resolve(run, "reference", NO_LIMITS).answers)
    tight = Constraints(max_size_bytes=smallest, max_drop_points=0.0)
    with pytest.raises(
        InfeasibleError, match=r"the smallest drop (measured|predicted) is .*relax --max-drop to"
    ) as error:
        resolve(run, "reference", tight)
    drop = float(str(error.value).split("relax --max-drop to ")[1])
    assert resolve(run, "reference", Constraints(max_size_bytes=smallest, max_drop_points=drop)).answers


def nothing_of(run: Run, layer: str, out: Path) -> Path:
    """A copy of the run without any sensitivity of a layer."""
    shutil.copytree(run.path, out)
    known = read_sensitivity(run.path / SENSITIVITY_FILE)
    kept = {piece: effect for piece, effect in known.effects.items() if layer not in piece}
    write_sensitivity(out / SENSITIVITY_FILE, Sensitivity(known.measure, known.samples, kept, (), 1.0))
    return out


def test_runs_that_say_nothing_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown target.*did you mean 'a100'"):
        resolve(run, "a10", NO_LIMITS)
    with pytest.raises(InputError, match="energy_mj is unknown on this target"):
        resolve(run, "mobile", Constraints(max_energy_mj=1.0))
    plain = made(tmp_path / "plain", search={"sampler": "random", "trials": 2})
    with pytest.raises(InputError, match=r"holds no sensitivities.*`haq pick`"):
        resolve(plain, "mobile", NO_LIMITS)
    known = read_sensitivity(run.path / SENSITIVITY_FILE)
    few = tmp_path / "few"
    shutil.copytree(run.path, few)
    wide = {p: e for p, e in known.effects.items() if "head" not in p or str(p["head"]) == "fp16/fp16"}
    write_sensitivity(few / SENSITIVITY_FILE, Sensitivity(known.measure, known.samples, wide, (), 1.0))
    # Of what the TPU executes for the head only fp32, which loses nothing, is as wide as fp16 in both formats.
    found = resolve(read_run(few), "tpu-v4", NO_LIMITS)
    assert all(str(answer.executed["head"]) == "fp32/fp32" for answer in found.answers)
    assert found.unknown == {"head": (4, 8, 16)}
    with pytest.raises(InputError, match=r"say nothing about what mobile executes.*got 'second'"):
        resolve(read_run(nothing_of(run, "second", tmp_path / "none")), "mobile", NO_LIMITS)


def test_a_target_of_ones_own_goes_by_its_name_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).resolve().parents[1] / "hardware_profiles" / "reference.toml"
    own = tmp_path / "board.toml"
    own.write_text(source.read_text())
    name = load_profile(str(own)).name
    run = made(tmp_path / "run", search={"trials": 2}, hardware={"targets": [str(own)]})
    assert run.targets == (name,)
    assert haq(capsys, "front", run.path, "--target", name, "--max-drop", "50")[0] == 0


def test_the_command_says_what_is_measured_and_what_predicted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = haq(capsys, "front", run.path, "--target", "tpu-v4", "--max-drop", "50")
    assert code == 0
    for part in ("Own on tpu-v4", "latency modelled", "else predicted from sensitivities", "predicted*", "measured"):
        assert part in out
    assert "* formats that were not measured count as a narrower one" in out
    code, out, _ = haq(capsys, "front", run.path, "--max-drop", "50", "--max-size-mb", "1")
    assert code == 0
    assert out.index("Own on reference") < out.index("Own on a100")
    assert "*" not in out


def test_as_json_every_point_has_its_kind_and_interval(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["front", str(run.path), "--target", "mobile", "--batch", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["targets"]["mobile"]["batch"] == 4
    rows = found["fronts"]["mobile"]
    assert {row["drop_is"] for row in rows} == {"measured", "predicted"}
    for row in rows:
        assert row["drop_low"] <= row["drop_points"] <= row["drop_high"]
        assert ("samples" in row) == (row["drop_is"] == "measured")
        assert sum(row["layers_by_bits"].values()) == len(row["assignment"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--target", "a10"), 2, "did you mean 'a100'"),
        (("--target", "mobile", "--quality"), 2, "no measured quality"),
        (("--max-latency-ms", "1e-9"), 3, "smallest reachable latency"),
        (("--max-size-mb", "1e-9", "--target", "mobile"), 3, "relax --max-size-mb"),
    ],
)
def test_wrong_requests_are_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, out, err = haq(capsys, "front", run.path, *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert says in err


def test_the_answer_loads_neither_torch_nor_optuna(run: Run) -> None:
    code = f"""
import sys
from haq.cli import main
assert main(["front", {str(run.path)!r}, "--target", "mobile", "--max-drop", "50"]) == 0
loaded = {{"torch", "optuna", "matplotlib"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_classifiers_worst_class_is_judged_where_it_was_measured(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, inputs = Own().eval(), torch.randn(64, 1, 8, 8)
    with torch.inference_mode():
        batches = (Batch((inputs,), model(inputs).argmax(dim=1)),)
    task = ClassificationTask({"search": batches, "validation": batches}, ((inputs[:32],),), "data")
    found = search(
        model, calibration=[(inputs[:32],)], evaluate=task, target="reference", out=tmp_path / "run",
        spec={"search": {"trials": 8, "storage": "none"}},
    )  # fmt: skip
    answers = resolve(found, "a100", Constraints(max_class_drop_points=100.0)).answers
    assert answers
    assert all(answer.measurement is not None for answer in answers)


LAYERS = ("a", "b")
SPACE = SearchSpace(LAYERS, tuple(Group(name, (name,), (4, 8, 16, 32)) for name in LAYERS))
MEANING = {4: "int4/int8", 8: "int8/int8", 16: "fp16/fp16", 32: "fp32/fp32"}
NARROW = {4: "int4/int4", 8: "int8/int8", 16: "bf16/bf16", 32: "bf16/bf16"}


def executed(bits: tuple[int, ...], meaning: dict[int, str]) -> Assignment:
    return Assignment.of({name: Precision.parse(meaning[b]) for name, b in zip(LAYERS, bits, strict=True)})


def legalized(meaning: dict[int, str]) -> object:
    return lambda requested: executed(tuple(requested.values()), meaning)


def measurement(drop: float, kl: float) -> Measurement:
    report = QualityReport((Quality(KL, "minimize", kl),))
    return Measurement("search", 100, 0.9 - drop / 100, drop, None, Interval(drop - 0.2, drop + 0.2), quality=report)


def test_what_one_target_measured_corrects_predictions_on_all_that_execute_the_same_pieces() -> None:
    effects = {
        Assignment.of({name: Precision.parse(text)}): Effect(value, None, 64)
        for name in LAYERS
        for text, value in (("int4/int8", 0.04), ("int8/int8", 0.01), ("fp16/fp16", 0.001))
    }
    known = Sensitivity("kl", 64, effects, (), 1.0)
    # Truly layer a loses four times as much, and a nat is worth 50 points.
    true = {(b, c): 4 * loss(b) + loss(c) for b in MEANING for c in MEANING}
    seen = [(executed(bits, MEANING), measurement(50 * kl, kl)) for bits, kl in true.items() if kl > 0]
    there = pool(SPACE, known, legalized(NARROW), seen)  # type: ignore[arg-type]
    assert there.known.tolist() == [[False, True, True, True]] * 2  # nothing as narrow as int4 activations
    assert there.is_bound.tolist() == [[False, False, True, True]] * 2  # bf16 is no narrower than int8
    mean, _ = there.predict(np.array([[1, 3], [3, 1]]))
    before, _ = pool(SPACE, known, legalized(NARROW), []).predict(np.array([[1, 3], [3, 1]]))  # type: ignore[arg-type]
    assert before == pytest.approx([PRIOR_SLOPE * 0.02] * 2)  # 8 bits, and bf16 as if it were int8
    assert mean[0] > 1.8 * mean[1]
    assert abs(mean[0] - 50 * 0.05) < 0.2 * abs(before[0] - 50 * 0.05)  # 4 x 0.01 + 0.01 nats at 50 points each
    assert there.surrogate.slope > 1.5 * PRIOR_SLOPE
    assert there.narrowest(np.array([[3, 2]])).tolist() == [[2, 2]]
    assert there.executed_here().tolist() == [[1, 1]]  # 8 bits for both is all that both execute alike
    assert np.isnan(there.losses).tolist() == (~there.known).tolist()


def loss(bits: int) -> float:
    return {4: 0.04, 8: 0.01, 16: 0.001, 32: 0.0}[bits]
