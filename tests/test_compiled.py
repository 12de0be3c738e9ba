"""Compiled candidates, and the one line that a machine without a compiler gets."""

import pytest
import torch
from test_simulate import prepared, seeded, small_network, uniform

from haq.errors import InputError
from haq.nn.compiled import compiled
from haq.nn.simulate import Simulator


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_candidate_computes_the_same(in_place: bool) -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    candidate = Simulator(model, workload, calibration, in_place=in_place).build(uniform(workload, "int4/int8"))
    made = compiled(candidate, (x,), backend="eager")
    with torch.inference_mode():
        assert torch.equal(made(x), candidate(x))


def test_a_backend_that_fails_is_one_line_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"cannot be compiled.*no_such_backend.*leave compilation off"):
        compiled(small_network(), (seeded(2, 3, 8, 8),), backend="no_such_backend")
