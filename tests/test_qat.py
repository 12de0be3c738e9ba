"""The trainable network computes what the simulator computes, learns everywhere, and freezes to what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_simulate import seeded, small_network, state_bytes, uniform
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import Calibration, calibrate
from haq.nn.qat import Trainable
from haq.nn.simulate import Simulator
from haq.nn.trace import trace
from haq.nn.tuned import build_tuned, read_tuned, write_tuned
from haq.precision import Assignment, Precision
from haq.workload import Workload


class Attention(nn.Module):
    """Attention in every way of writing it that the parameter names, and a linear layer behind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        scale = 8**-0.5
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "einsum":
            y = torch.einsum("bij,bjd->bid", (torch.einsum("bid,bjd->bij", q, k) * scale).softmax(-1), v)
        elif self.how == "bmm":
            y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * scale).softmax(-1), v)
        else:
            y = (q @ k.transpose(1, 2) * scale).softmax(-1).matmul(v)
        return self.head(self.norm(y)).mean(dim=1)


class Packed(nn.Module):
    """torch's multi-head attention: its projections are parameters that no module call multiplies."""

    def __init__(self, *, cross: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cross = cross
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = (2 * x, 3 * x) if self.cross else (x, x)
        return self.head(self.attention(x, keys, values, need_weights=False)[0]).mean(dim=1)


class Twice(nn.Module):
    """Runs one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x))).mean(dim=1)


class Tied(nn.Module):
    """Reads an embedding's table again as the weight of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[..., 0].abs() * 5).long().clamp(max=10)
        return F.linear(self.embedding(tokens), self.embedding.weight).mean(dim=1)


def prepared(model: nn.Module, x: Tensor) -> tuple[Workload, Calibration]:
    workload = trace(model, (x,), name="net")
    return workload, calibrate(model, workload, [(x,)])


NETWORKS = {
    "convolutions": (small_network, (2, 3, 8, 8)),
    "matmul": (lambda: Attention("matmul").eval(), (3, 4, 8)),
    "bmm": (lambda: Attention("bmm").eval(), (3, 4, 8)),
    "einsum": (lambda: Attention("einsum").eval(), (3, 4, 8)),
    "fused": (lambda: Attention("fused").eval(), (3, 4, 8)),
    "packed": (lambda: Packed().eval(), (3, 4, 8)),
    "twice": (lambda: Twice().eval(), (3, 4, 8)),
}


TOLERANCES = {"int4/int8": 1e-6, "int8": 1e-6, "int4/bf16": 1e-2, "fp16": 1e-3, "fp32": 1e-6}
"""Sums of the same numbers in another order: a float format then rounds some of them to the neighbour."""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("text", TOLERANCES)
def test_it_starts_as_the_simulator_and_freezes_to_what_it_computes(name: str, text: str) -> None:
    build, shape = NETWORKS[name]
    model, x = build(), seeded(*shape)
    workload, calibration = prepared(model, x)
    executed = uniform(workload, text)
    student = Trainable(model, workload, executed, calibration)
    simulated = Simulator(model, workload, calibration).build(executed)
    tolerance = {"rtol": TOLERANCES[text], "atol": TOLERANCES[text]}
    with torch.no_grad():
        torch.testing.assert_close(student(x), simulated(x), **tolerance)
        frozen = build_tuned(model, workload, executed, student.frozen())
        torch.testing.assert_close(frozen(x), simulated(x), **tolerance)
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        frozen = build_tuned(model, workload, executed, student.frozen())
        torch.testing.assert_close(student(x), frozen(x), **tolerance)
        assert not torch.allclose(frozen(x), simulated(x), atol=5e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_weight_and_bias_gets_a_gradient_and_the_original_stays(name: str) -> None:
    build, shape = NETWORKS[name]
    model, x = build(), seeded(*shape)
    before = state_bytes(model)
    workload, calibration = prepared(model, x)
    student = Trainable(model, workload, uniform(workload, "int4/int8"), calibration)
    student(x).square().sum().backward()
    # Keys shift all scores of a row alike, which softmax takes away: their bias has no gradient but rounding's.
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert sum(bool((p.grad != 0).any()) for p in student.parameters()) >= len(list(student.parameters())) - 1
    assert state_bytes(model) == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_rows_of_a_packed_parameter_take_their_own_precisions() -> None:
    model, x = Packed(cross=True).eval(), seeded(3, 4, 8)
    workload, calibration = prepared(model, x)
    rows = [name for name in workload.layer_names if "in_proj" in name]
    assert len(rows) == 3
    mixed = dict.fromkeys(workload.layer_names, Precision.parse("fp32")) | {rows[1]: Precision.parse("int4/int8")}
    executed = Assignment.of(mixed)
    student = Trainable(model, workload, executed, calibration)
    simulated = Simulator(model, workload, calibration).build(executed)
    with torch.no_grad():
        torch.testing.assert_close(student(x), simulated(x), rtol=1e-5, atol=1e-6)
        frozen = build_tuned(model, workload, executed, student.frozen())
        torch.testing.assert_close(frozen(x), simulated(x), rtol=1e-5, atol=1e-6)
    student(x).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_table_that_is_tied_to_a_layer_is_trained_once_for_both() -> None:
    model, x = Tied().eval(), seeded(3, 4, 8)
    workload, calibration = prepared(model, x)
    executed = uniform(workload, "int4/int8")
    student = Trainable(model, workload, executed, calibration)
    assert len(student.weights) == 1
    with torch.no_grad():
        simulated = Simulator(model, workload, calibration).build(executed)
        torch.testing.assert_close(student(x), simulated(x), rtol=1e-5, atol=1e-6)


def test_a_table_of_its_own_is_rounded_and_stays() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)).eval()
    tokens = torch.tensor([[1, 9]])
    workload = trace(model, (tokens,), name="tokens")
    calibration = calibrate(model, workload, [(tokens,)])
    executed = uniform(workload, "int8")
    student = Trainable(model, workload, executed, calibration)
    assert len(student.weights) == 1
    with torch.no_grad():
        assert torch.equal(student(tokens), Simulator(model, workload, calibration).build(executed)(tokens))


def test_a_product_that_training_cannot_see_is_an_error_and_not_left_unrounded() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.linear(self.layer(x), self.layer.weight)

    model, x = Hidden().eval(), seeded(3, 4)
    workload, calibration = prepared(model, x)
    student = Trainable(model, workload, uniform(workload, "int8"), calibration)
    with pytest.raises(InputError, match="does not see"):
        student(x)


def test_an_assignment_of_another_network_is_an_error() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    with pytest.raises(InputError, match="leaves layers out"):
        Trainable(model, workload, Assignment.uniform(["0"], Precision.parse("int8")), calibration)


@pytest.mark.parametrize("text", ["int4/int8", "int8/fp16", "fp32"])
def test_numbers_come_back_from_their_file_bit_for_bit(text: str, tmp_path: Path) -> None:
    model, x = Packed(cross=True).eval(), seeded(3, 4, 8)
    workload, calibration = prepared(model, x)
    executed = uniform(workload, text)
    tuned = Trainable(model, workload, executed, calibration).frozen()
    sha256 = write_tuned(tmp_path / "a.safetensors", tuned)
    raw = {"parameters": "a.safetensors", "parameters_sha256": sha256, "layers": executed.to_json()}
    again = read_tuned(tmp_path / "a.json", raw, workload)
    with torch.inference_mode():
        expected = build_tuned(model, workload, executed, tuned)(x)
        assert torch.equal(build_tuned(model, workload, executed, again)(x), expected)


def test_numbers_that_are_not_the_configs_are_errors(tmp_path: Path) -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    executed = uniform(workload, "int8")
    path = tmp_path / "a.safetensors"
    raw = {"parameters": "a.safetensors", "layers": executed.to_json()}
    with pytest.raises(InputError, match="no tuned parameters"):
        read_tuned(tmp_path / "a.json", {"layers": {}}, workload)
    with pytest.raises(InputError, match="does not exist"):
        read_tuned(tmp_path / "a.json", raw, workload)
    sha256 = write_tuned(path, Trainable(model, workload, executed, calibration).frozen())
    with pytest.raises(InputError, match="not those of the config"):
        read_tuned(tmp_path / "a.json", {**raw, "parameters_sha256": "0"}, workload)
    half = path.read_bytes()
    path.write_bytes(half[: len(half) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_tuned(tmp_path / "a.json", {**raw, "parameters_sha256": sha256}, workload)
    narrower = {**raw, "layers": uniform(workload, "fp16").to_json(), "parameters_sha256": sha256}
    path.write_bytes(half)
    with pytest.raises(InputError, match="not of this network"):
        read_tuned(tmp_path / "a.json", narrower, workload)


def test_a_config_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    executed = uniform(workload, "int8")
    sha256 = write_tuned(tmp_path / "a.safetensors", Trainable(model, workload, executed, calibration).frozen())
    folder = tmp_path / "config"
    folder.mkdir()
    raw = {"parameters": "../a.safetensors", "parameters_sha256": sha256, "layers": executed.to_json()}
    with pytest.raises(InputError, match="does not exist"):
        read_tuned(folder / "a.json", raw, workload)
