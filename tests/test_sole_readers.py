"""Which operands are rounded in place, and that a candidate which does so computes what one that copies computes."""

import copy

import pytest
import torch
from nets import attention, residual
from test_simulate import seeded, state_bytes, uniform
from torch import Tensor, nn

from haq.nn.calibrate import calibrate
from haq.nn.quantizers import ActivationQuantizer
from haq.nn.simulate import Simulator
from haq.nn.sole_readers import Clamp, clamps, sole_readers
from haq.nn.trace import trace
from haq.precision import FORMATS, Assignment, Precision
from haq.workload import Unsupported


def test_only_what_one_op_reads_counts_and_never_the_networks_input() -> None:
    # a reads the input; relu's result goes to b and to the addition; the addition reads two.
    assert sole_readers(residual()) == {"relu", "pool", "c"}


def test_a_network_with_unknown_ops_has_no_sole_readers() -> None:
    known = residual()
    unknown = copy.copy(known)
    object.__setattr__(unknown, "unsupported", (Unsupported("custom.op", "head"),))
    assert sole_readers(unknown) == frozenset()


def test_two_projections_of_one_embedding_are_no_sole_readers_but_a_softmax_is() -> None:
    assert sole_readers(attention()) == {"softmax"}


class Network(nn.Module):
    """A shortcut, ReLUs in and out of place, ReLU6, a border, and a layer on what may be the memory of the input."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=inplace)
        self.depthwise, self.relu6 = nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(inplace=inplace)
        self.project = nn.Conv2d(8, 8, 1)
        self.channels, self.head = nn.Linear(3, 8), nn.Linear(8, 5)
        self.project.weight.data *= 8

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last order `contiguous` returns the input's own memory.
        beside = self.channels(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        shortcut = self.relu(self.stem(x))
        y = self.relu6(8 * self.depthwise(nn.functional.pad(shortcut, (1, 1, 1, 1))))
        y = torch.relu(self.project(y) + shortcut + beside)
        result: Tensor = self.head(y.mean((2, 3)))
        return result


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("text", ["int8", "int4/int8", "int4", "fp16", "int8/bf16"])
def test_in_place_candidates_compute_the_same_and_leave_batch_and_model_alone(
    text: str, layout: torch.memory_format, inplace: bool
) -> None:
    model, x = Network(inplace=inplace).eval(), 3 * seeded(4, 3, 9, 9).contiguous(memory_format=layout)
    workload = trace(model, (x,), name="network")
    calibration = calibrate(model, workload, [(x,)])
    batch, before = x.clone(), state_bytes(model)
    with torch.inference_mode():
        expected = Simulator(model, workload, calibration).build(uniform(workload, text))(x)
        simulator = Simulator(model, workload, calibration, in_place=True)
        for _ in range(2):
            assert torch.equal(simulator.build(uniform(workload, text))(x), expected)
    assert torch.equal(x, batch)
    assert state_bytes(model) == before


def test_mixed_candidates_compute_the_same_in_place_too() -> None:
    model, x = Network(inplace=False).eval(), 3 * seeded(4, 3, 9, 9)
    workload = trace(model, (x,), name="network")
    calibration = calibrate(model, workload, [(x,)])
    kinds = ("int4", "fp32", "int8", "fp16", "int4/int8")
    mixed = Assignment.of({n: Precision.parse(kinds[i % 5]) for i, n in enumerate(workload.layer_names)})
    with torch.inference_mode():
        expected = Simulator(model, workload, calibration).build(mixed)(x)
        assert torch.equal(Simulator(model, workload, calibration, in_place=True).build(mixed)(x), expected)


def test_what_lies_behind_a_contiguous_call_is_not_written_over_and_what_lies_behind_a_border_is() -> None:
    workload = trace(Network(inplace=False).eval(), (seeded(1, 3, 9, 9),), name="network")
    readers = sole_readers(workload)
    assert "channels" not in readers
    # The border is new memory; the shortcut before it is read twice.
    assert {"depthwise", "project", "head"} <= readers


def test_a_relu_is_part_of_a_quantizer_that_starts_at_zero_and_a_relu6_of_one_that_ends_by_six() -> None:
    relu, relu6 = Clamp("relu", "conv", 0.0, float("inf")), Clamp("relu6", "conv", 0.0, 6.0)
    wide, narrow = (ActivationQuantizer(FORMATS["int8"], end / 255, 0) for end in (8.0, 5.0))
    shifted = ActivationQuantizer(FORMATS["int8"], 5 / 255, 1)
    assert [relu.is_part_of(q) for q in (wide, narrow, shifted)] == [True, True, False]
    # 6 is code 191 of 8's 255
    assert [relu6.is_part_of(q) for q in (wide, narrow, shifted)] == [False, True, False]


def test_only_a_relu_between_two_sole_readers_is_left_out_and_only_where_the_layer_is_rounded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1)).eval()
    x = seeded(2, 3, 5, 5)
    workload = trace(model, (x,), name="chain")
    assert [(c.module, c.layer) for c in clamps(model, workload)] == [("1", "2")]
    simulator = Simulator(model, workload, calibrate(model, workload, [(x,)]), in_place=True)
    assert isinstance(simulator.build(uniform(workload, "int8"))[1], nn.Identity)
    assert isinstance(simulator.build(uniform(workload, "fp16"))[1], nn.ReLU)
    assert isinstance(model[1], nn.ReLU)
    model[1].register_forward_hook(lambda m, args, y: None)
    assert clamps(model, workload) == ()


def test_a_relu_that_runs_twice_or_whose_result_leaves_the_network_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu, self.last = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.third(self.relu(self.second(self.relu(self.first(x))))))
            return y

    model = Shared().eval()
    assert clamps(model, trace(model, (seeded(2, 4),), name="shared")) == ()
