"""A diagnosis on networks of known losses: what is proved, what another cause explains, what stays unexplained."""

from dataclasses import replace

import numpy as np
import pytest
from test_cost_modes import costs_of
from test_detectors import OPERAND, OUTPUT, WEIGHT
from test_localize import Sums

from haq.diagnose import detectors, error_accumulation
from haq.diagnose.evidence import Evidence, LayerEvidence
from haq.diagnose.examine import BUDGET, diagnose
from haq.diagnose.finding import Change, Outcome, Repair
from haq.diagnose.plain import explained_share
from haq.precision import Assignment, Precision
from haq.workload import Gemm, LayerSpec, WeightSpec, Workload

INT8, FP32 = Precision.parse("int8"), Precision.parse("fp32")
CLIPPED = replace(OPERAND, range=(0, 0.5), sqnr_db=10, best_sqnr_db=45, clipped_share=0.3, calibrated=(0, 0.5))
"""calibration-mismatch, severity 0.1."""
STRETCHED = replace(OPERAND, range=(0, 4), calibrated=(0, 4), sqnr_db=33, calibrated_beyond_share=0.0)
"""activation-outliers, severity 0.0005."""
BIASED = replace(OUTPUT, mean_error=np.full(4, 0.02))
"""biased-error, severity 0.00008."""


def recalibrate(layer):
    return Repair("recalibrate", layer, 0)


def clip(layer):
    return Repair("clip", layer, 0)


def bias(layer):
    return Repair("bias", layer)


def looked(**parts):
    """Layers in int8, each healthy but for the parts given."""
    layers = {}
    for name, own in parts.items():
        read = replace(next((p for p in own if p in (CLIPPED, STRETCHED)), OPERAND), layer=name)
        output = replace(next((p for p in own if p is BIASED), OUTPUT), layer=name)
        layers[name] = LayerEvidence(name, INT8, (read,), replace(WEIGHT, layer=name), output)
    return Evidence(network(parts), Assignment.of(dict.fromkeys(layers, INT8)), layers, (), 64)


def network(names):
    nodes, source = [], "x"
    for name in names:
        weight = WeightSpec(f"{name}.weight", (4, 4), 0)
        nodes.append(LayerSpec(name, "linear", (source,), ((4,),), (4,), 16, Gemm(1, 4, 4, 1), weight, 4))
        source = name
    return Workload("net", (("x", (4,)),), tuple(nodes), (source,))


class Of(Sums):
    """Losses from a function of the single layers' losses, with what repairs undo of them."""

    def __init__(self, losses, undone=None, joint=sum):
        super().__init__(losses, undone)
        self.joint = joint

    def measure(self, change):
        self.asked += 1
        raised = {layer for layer, _ in change.raised}
        lost = {layer: loss for layer, loss in self.losses.items() if layer not in raised}
        for repair in change.repairs:
            for name, share in self.undone.get(repair, {}).items():
                if name in lost:
                    lost[name] *= 1 - share
        total = self.joint(lost.values()) if lost else 0.0
        scores = np.ones(64)
        scores[: round(20 * min(total, 1.0))] = 0.0
        return Outcome(total * (1 + self.noise), scores, float(scores.mean()))


def verdict(found):
    return [(finding.mode, finding.layer) for finding in found.findings]


def test_a_network_that_lost_nothing_has_no_findings_whatever_its_statistics() -> None:
    bench = Of({"a": 0.004, "b": 0.0}, {recalibrate("a"): {"a": 1.0}})
    found = diagnose(bench, looked(a=[CLIPPED], b=[STRETCHED]), None)
    assert verdict(found) == []
    assert [s.mode for s in found.suspected] == ["calibration-mismatch", "activation-outliers"]
    assert bench.asked == 3  # as it is, and as it is against itself: nothing was undone
    assert found.lost.nats == pytest.approx(0.004, abs=1e-4)
    assert dict(found.shares) == {}


def test_the_cause_is_proved_with_its_effect_and_the_harmless_is_listed_apart() -> None:
    bench = Of({"a": 0.3, "b": 0.0, "c": 0.02}, {recalibrate("a"): {"a": 0.9}, clip("b"): {"b": 1.0}})
    found = diagnose(bench, looked(a=[CLIPPED], b=[STRETCHED], c=[]), None)
    assert verdict(found)[0] == ("calibration-mismatch", "a")
    finding = found.findings[0]
    assert finding.effect.nats == pytest.approx(0.27, abs=1e-3)
    assert finding.effect.nats_interval.low < 0.27 < finding.effect.nats_interval.high
    assert finding.effect.samples == 64
    # 20 x 0.32 = 6 of 64 wrong before, 20 x 0.05 = 1 after.
    assert finding.effect.points == pytest.approx(100 * 5 / 64)
    assert finding.repair == detectors.REPAIRS["calibration-mismatch"]
    assert ("activation-outliers", "b") in [(s.mode, s.layer) for s in found.suspected]
    assert found.lost.nats == pytest.approx(0.32, abs=1e-3)


def test_what_another_cause_explains_is_no_finding() -> None:
    """Undoing the bias of `b` helps against the range of `a`; with that repaired there is nothing left of it."""
    bench = Of({"a": 0.3, "b": 0.0}, {clip("a"): {"a": 1.0}, bias("b"): {"a": 0.6}})
    found = diagnose(bench, looked(a=[STRETCHED], b=[BIASED]), None)
    assert verdict(found) == [("activation-outliers", "a")]
    assert [s.mode for s in found.suspected] == ["biased-error"]
    assert explained_share(found) == pytest.approx(1.0, abs=0.01)


def test_two_causes_are_both_found_the_larger_first_and_each_on_top_of_the_other() -> None:
    undone = {recalibrate("a"): {"a": 1.0}, clip("b"): {"b": 1.0}}
    found = diagnose(Of({"a": 0.1, "b": 0.3}, undone), looked(a=[CLIPPED], b=[STRETCHED]), None)
    assert verdict(found) == [("activation-outliers", "b"), ("calibration-mismatch", "a")]
    assert [f.effect.nats for f in found.findings] == pytest.approx([0.3, 0.1], abs=1e-3)
    assert found.explained.nats == pytest.approx(sum(f.effect.nats for f in found.findings))
    assert found.explained.nats == pytest.approx(found.lost.nats)


def test_a_cause_that_another_one_hides_is_found_once_that_is_undone() -> None:
    """Answers are as bad as the worst layer makes them: undoing `b` alone regains nothing."""
    undone = {recalibrate("a"): {"a": 1.0}, clip("b"): {"b": 1.0}}
    found = diagnose(Of({"a": 0.3, "b": 0.2}, undone, joint=max), looked(a=[CLIPPED], b=[STRETCHED]), None)
    assert verdict(found) == [("calibration-mismatch", "a"), ("activation-outliers", "b")]
    assert [f.effect.nats for f in found.findings] == pytest.approx([0.1, 0.2], abs=1e-3)


def test_loss_without_a_suspicion_is_localized_and_the_operator_judged_last() -> None:
    names = [f"l{i:02}" for i in range(16)]
    bench = Of({name: 0.2 if name == "l05" else 0.0 for name in names})
    found = diagnose(bench, looked(**{name: [] for name in names}), None)
    assert verdict(found) == [("sensitive-operator", "l05")]
    assert found.findings[0].suspicion.change == Change(raised=(("l05", FP32),))
    assert found.shares["l05"] == pytest.approx(1.0, abs=0.01)
    assert explained_share(found) == pytest.approx(1.0, abs=0.01)


def test_no_operator_is_sensitive_where_a_cause_was_proved() -> None:
    """A repair brings 60 % back; the rest stays in the same layer, and is said to be unexplained."""
    bench = Of({"a": 0.3, "b": 0.0, "c": 0.0, "d": 0.0}, {recalibrate("a"): {"a": 0.6}})
    found = diagnose(bench, looked(a=[CLIPPED], b=[], c=[], d=[]), None)
    assert verdict(found) == [("calibration-mismatch", "a")]
    assert explained_share(found) == pytest.approx(0.6, abs=0.01)
    assert found.shares["a"] == pytest.approx(0.4, abs=0.01)  # raised on top of the repair


def test_suspicions_beyond_the_budget_are_tried_where_group_testing_points() -> None:
    names = [f"l{i:02}" for i in range(BUDGET + 1)]
    evidence = looked(**{name: [CLIPPED] for name in names[:-1]}, **{names[-1]: [STRETCHED]})
    bench = Of({name: 0.0 if name != names[-1] else 0.2 for name in names}, {clip(names[-1]): {names[-1]: 1.0}})
    assert verdict(diagnose(bench, evidence, None)) == [("activation-outliers", names[-1])]


def test_a_loss_spread_evenly_has_no_cause_and_the_shares_say_so() -> None:
    names = "abcdefgh"
    found = diagnose(Of(dict.fromkeys(names, 0.05)), looked(**{name: [] for name in names}), None)
    assert verdict(found) == []
    assert explained_share(found) == 0
    assert list(found.shares.values()) == pytest.approx([1 / 8] * 8, abs=0.01)


def test_errors_that_add_up_are_judged_after_the_others() -> None:
    moved = replace(OUTPUT, sqnr_db=30, joint_gain=np.full(4, 0.9))
    evidence = looked(**{name: [] for name in "abcd"})
    layers = {n: replace(e, output=replace(moved, layer=n)) for n, e in evidence.layers.items()}
    evidence = replace(evidence, layers=layers)
    undone = {Repair("reestimate"): dict.fromkeys("abcd", 0.9)}
    together = Of(dict.fromkeys("abcd", 0.2), undone, joint=lambda lost: sum(lost) ** 2)
    assert verdict(diagnose(together, evidence, None)) == [(error_accumulation.MODE, "a")]
    # Where each layer loses as much alone, the repair would help as well, and is no proof of that.
    apart = Of(dict.fromkeys("abcd", 0.2), undone)
    assert verdict(diagnose(apart, evidence, None)) == []


def test_costs_are_priced_whatever_accuracy_did() -> None:
    net = network("abc")
    costs = costs_of(net, "a100", {"a": 32, "b": 8, "c": 32})
    priced = [s for detect in detectors.COST_DETECTORS.values() for s in detect(costs)]
    assert priced, "a single int8 layer among fp32 ones saves nothing"
    found = diagnose(Of(dict.fromkeys("abc", 0.0)), looked(a=[], b=[], c=[]), costs)
    assert [(f.mode, f.layer, f.effect) for f in found.findings] == [(s.mode, s.layer, s.effect) for s in priced]
    assert explained_share(found) is None


def test_progress_counts_what_is_measured_and_how_much_is_left() -> None:
    heard = []
    bench = Of({"a": 0.3, "b": 0.0}, {recalibrate("a"): {"a": 1.0}})
    diagnose(bench, looked(a=[CLIPPED], b=[STRETCHED]), None, progress=lambda *told: heard.append(told))
    assert heard == [("suspicions", 1, 2), ("suspicions", 2, 2)]


def test_a_task_without_logits_is_judged_by_points() -> None:
    class Points(Of):
        def fp32(self):
            return replace(super().fp32(), kl=None)

        def measure(self, change):
            return replace(super().measure(change), kl=None)

    bench = Points({"a": 1.0, "b": 0.0}, {recalibrate("a"): {"a": 1.0}})
    found = diagnose(bench, looked(a=[CLIPPED], b=[]), None)
    assert verdict(found) == [("calibration-mismatch", "a")]
    assert (found.lost.nats, found.findings[0].effect.nats) == (None, None)
    assert found.findings[0].effect.points == pytest.approx(100 * 20 / 64)
