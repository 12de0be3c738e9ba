"""What savings are measured against: FP32 as the target runs it, and four bytes a parameter."""

from nets import residual, uniform

from haq.engine.problem import Problem, baseline_costs
from haq.engine.targets import profile_target
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.pricing import price
from haq.space import build_space


def test_a_phone_that_runs_fp32_as_fp16_still_saves_size_against_fp32():
    net, phone = residual(), load_profile("mobile")
    problem = Problem(net, build_space(net), (profile_target(net, phone),), lambda executed, split: 1.0)
    base = baseline_costs(problem)["mobile"]
    as_run = estimate(net, legalize(net, uniform(net, 32), phone).executed, phone, batch=1)
    assert base["size_bytes"] == 4 * net.parameters == 2 * as_run.size_bytes
    assert base["latency_ms"] == as_run.latency_ms
    assert price(net, "mobile", 8, batch=1).baseline.size_bytes == 4 * net.parameters
    assert price(net, "mobile", 8, batch=1).baseline.latency_ms == as_run.latency_ms
