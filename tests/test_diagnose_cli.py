"""`haq diagnose` on a user's own small space: what it prints, and what it says to wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diagnosis_fakes import diagnosis
from test_cli import Haq
from test_finetune_cli import CODE, config, haq, space

from haq.accuracy import Interval, compare
from haq.candidate import Candidate, TargetResult
from haq.cli.diagnose import effect, where
from haq.cli.progress import shown_steps
from haq.diagnose.finding import Effect
from haq.diagnosing import nearest_to
from haq.front import Point
from haq.precision import Assignment, Precision

__all__ = ["config", "haq", "space"]  # fixtures


def point(drop_points: float) -> Point:
    executed = Assignment.uniform(("a",), Precision.parse("int8"))
    result = TargetResult(
        "t", executed, (), {"size_bytes": 1, "latency_ms": 1.0}, compare(1.0, 1 - drop_points / 100, "search")
    )
    return Point(Candidate(0, "tpe", Assignment.uniform(("a",), 8), (result,)), result)


def test_of_a_run_the_point_nearest_to_the_limit_is_taken_and_without_a_limit_the_worst() -> None:
    points = tuple(map(point, (0.1, 0.9, 1.4)))
    assert nearest_to(points, 1.0) is points[1]
    assert nearest_to(points, 0.0) is points[0]
    assert nearest_to(points, None) is points[2]


def test_effects_are_said_with_their_intervals() -> None:
    cost, accuracy = (finding.effect for finding in diagnosis().findings)
    assert effect(accuracy) == "+2.00 points (0.50 to 3.50), 0.03 nats (0.02 to 0.04)"
    assert effect(cost) == "0.012 ms (0.006 to 0.018), -1,024 bytes"
    assert effect(Effect(nats=0.5, nats_interval=Interval(0.1, 0.9))) == "0.5 nats (0.1 to 0.9)"
    assert effect(Effect()) == ""
    assert where(diagnosis().findings[1].suspicion).endswith(", operand 0")
    assert where(diagnosis().findings[0].suspicion).endswith(" and 1 more")


def test_a_log_gets_a_line_for_each_kind_of_work_and_none_for_what_may_still_fail(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown_steps() as report:
        report("opening", 0, 0)
        for done in range(1, 4):
            report("suspicions", done, 8)
        report("groups", 8, 8)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("suspicions 1/8, ")
    assert first.endswith(" left")
    assert second == "groups 8/8"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--page", "page.html"), "a .png, .svg, .pdf file"),
        (("--samples", "1"), "--samples"),
        (("--split", "train"), "validation"),
        (("--id", "abc"), "a run directory with it"),
        (("--target", "a1000"), "did you mean 'a100'?"),
        (("--artifact", "no.onnx"), "no such artifact"),
    ],
)
def test_wrong_flags_are_one_line(haq: Haq, space: Path, config: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in haq.error("diagnose", config, "--space", space, *flags)


def test_what_is_no_config_and_no_run_is_refused(haq: Haq, tmp_path: Path, config: Path) -> None:
    assert "not a run directory" in haq.error("diagnose", tmp_path)
    assert "cannot read the config" in haq.error("diagnose", tmp_path / "none.json")
    assert "nothing is loaded because a config names it" in haq.error("diagnose", config)


def test_a_config_of_another_network_is_refused_with_both_hashes(haq: Haq, space: Path, config: Path) -> None:
    raw = json.loads(config.read_text())
    raw["model"]["weights_hash"] = "0" * 64
    config.write_text(json.dumps(raw))
    error = haq.error("diagnose", config, "--space", space)
    assert "the network are not those of the config: weights_hash differs" in error
    assert "0" * 64 in error


BROKEN = '''
class Broken(nn.Module):
    """Divides by zero between its convolutions."""

    def __init__(self, net):
        super().__init__()
        self.first, self.bad, self.last = net[:3], nn.LayerNorm((8, 8, 8), eps=0.0), net[3:]

    def forward(self, x):
        return self.last(self.bad(self.first(x) * 0.0))
'''


def of_code(config: Path, code: str) -> Path:
    """The config and space of another network, without hashes of the first."""
    (config.parent / "other.py").write_text(code)  # the first one's is imported already
    own = config.parent / "own.toml"
    own.write_text(own.read_text().replace("./net.py", "./other.py"))
    raw = json.loads(config.read_text())
    raw["model"].pop("weights_hash")
    config.write_text(json.dumps(raw))
    return config


def test_a_network_that_is_not_finite_in_fp32_is_refused_and_the_first_such_layer_named(
    haq: Haq, space: Path, config: Path
) -> None:
    code = CODE.replace("def network():", BROKEN + "\n\ndef network():").replace(
        "return net.eval()", "return Broken(net).eval()"
    )
    error = haq.error("diagnose", of_code(config, code), "--space", space)
    assert "the network's results are not finite in FP32, from bad on" in error


def test_data_of_the_wrong_shape_are_refused_with_both_shapes(haq: Haq, space: Path, config: Path) -> None:
    code = CODE.replace("return torch.randn(count, 1, 8, 8,", "return torch.randn(count, 2, 8, 8,")
    code = code.replace("net(images(9, 64))", "").replace("network()(x).argmax(1)", "x.flatten(1).argmax(1) % 3")
    error = haq.error("diagnose", of_code(config, code), "--space", space)
    assert "the network does not run on the data; got '2x8x8'; expected inputs of 1x8x8" in error


def test_data_that_hold_no_numbers_are_refused(haq: Haq, space: Path, config: Path) -> None:
    code = CODE.replace("((images(3, 64),),)", "((images(3, 64) / 0,),)")
    assert "no finite number" in haq.error("diagnose", of_code(config, code), "--space", space)


def test_a_network_in_4_bits_is_diagnosed(haq: Haq, space: Path, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("haq.diagnose.examine")
    page = tmp_path / "page.png"
    ran = haq("diagnose", config, "--space", space, "--target", "a100", "--json", "--page", page)
    assert ran.code == 0, ran.err
    raw = json.loads(ran.out)
    assert (raw["config"], raw["target"], raw["batch"], raw["split"]) == ("abc", "a100", 1, "search")
    # Formats of the reference on the A100, which has no int4 convolutions.
    assert {f["layer"] for f in raw["findings"] if f["mode"] == "not-executed"} >= {"3"}
    assert raw["page"] == str(page)
    assert page.read_bytes().startswith(b"\x89PNG")
    ran = haq("diagnose", config, "--space", space)
    assert "against FP32 it lost" in ran.out
    assert "sample-forwards" in ran.out
    error = haq.error("diagnose", config, "--space", space, "--max-drop", "0.5")
    assert "too few samples to see a drop of 0.5 points" in error
    assert "at least 765" in error
