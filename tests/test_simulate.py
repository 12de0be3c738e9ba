"""apply and Simulator against integer arithmetic by hand, and what they promise about the original model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.calibrate import Calibration, calibrate
from haq.nn.quantizers import cast
from haq.nn.simulate import Simulator, apply
from haq.precision import FORMATS, Assignment, Precision
from haq.techniques import Stack
from haq.workload import LayerSpec, WeightSpec, Workload

KINDS = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.Embedding: "embedding",
}


def workload_of(model: nn.Module, *names: str) -> Workload:
    """A workload by hand: the named modules (all of a known kind if none are named); shapes play no part here."""
    modules = {n: m for n, m in model.named_modules() if type(m) in KINDS}
    layers = []
    for name in names or modules:
        module = modules[name.split("@")[0]]
        axis = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
        weight = WeightSpec(f"{name.split('@')[0]}.weight", tuple(module.weight.shape), axis)
        layers.append(LayerSpec(name, KINDS[type(module)], (), ((1,),), (1,), 1, None, weight))
    return Workload("by hand", (("x", (1,)),), tuple(layers), ())


def uniform(workload: Workload, text: str) -> Assignment:
    return Assignment.uniform(workload.layer_names, Precision.parse(text))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NEAREST = Stack(("mse",))
"""Weights that a reader can redo: no calibration data in them."""


def prepared(model: nn.Module, x: Tensor, **options: str) -> tuple[Workload, Calibration]:
    workload = workload_of(model)
    return workload, calibrate(model, workload, [(x,)], stack=NEAREST, **options)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(288, 5)
    ).eval()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_integer_convolution_equals_integer_arithmetic_by_hand(weights: str) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    model, x = nn.Sequential(conv).eval(), seeded(2, 3, 9, 9)
    workload, calibration = prepared(model, x)
    simulator = Simulator(model, workload, calibration)
    y = simulator.build(uniform(workload, f"{weights}/int8"))(x)
    quantizer = calibration.quantizer("0", 0, FORMATS["int8"])
    stored = simulator.stored(workload.layers[0], FORMATS[weights]).weight
    q = quantizer.codes(x).double() - quantizer.zero_point
    sums = F.conv2d(q, stored.codes.double(), padding=1, stride=2)
    assert torch.equal(sums, sums.round())
    by_hand = sums * quantizer.scale * stored.scales.double().view(-1, 1, 1) + conv.bias.double().view(-1, 1, 1)
    assert torch.allclose(y.double(), by_hand, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(y, model(x), atol=1e-4)


def test_an_integer_linear_layer_equals_a_numpy_integer_product() -> None:
    linear = nn.Linear(16, 5)
    model, x = nn.Sequential(linear).eval(), seeded(7, 16)
    workload, calibration = prepared(model, x)
    simulator = Simulator(model, workload, calibration)
    quantizer = calibration.quantizer("0", 0, FORMATS["int8"])
    stored = simulator.stored(workload.layers[0], FORMATS["int4"]).weight
    sums = (quantizer.codes(x).numpy() - quantizer.zero_point) @ stored.codes.numpy().astype("int32").T
    assert sums.dtype == "int32"
    by_hand = sums * quantizer.scale * stored.scales.numpy() + linear.bias.detach().numpy()
    y = simulator.build(uniform(workload, "int4/int8"))(x).detach()
    assert torch.allclose(y, torch.from_numpy(by_hand).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_a_float_layer_rounds_weight_bias_operand_and_output(fmt: str) -> None:
    linear = nn.Linear(64, 8)
    model, x = nn.Sequential(linear).eval(), seeded(5, 64)
    workload, calibration = prepared(model, x)
    f = FORMATS[fmt]
    by_hand = cast(F.linear(cast(x, f), cast(linear.weight, f), cast(linear.bias, f)), f)
    assert torch.equal(apply(model, workload, uniform(workload, fmt), calibration)(x), by_hand)


@pytest.mark.parametrize("text", ["int4/bf16", "int8/bf16", "int4/fp16", "int8/fp16"])
def test_storage_only_computes_in_the_activation_format(text: str) -> None:
    conv = nn.Conv2d(4, 6, 3)
    model, x = nn.Sequential(conv).eval(), seeded(2, 4, 6, 6)
    workload, calibration = prepared(model, x)
    simulator = Simulator(model, workload, calibration)
    precision = Precision.parse(text)
    f = precision.activation
    weight = cast(simulator.stored(workload.layers[0], precision.weight).weight.dequantize(), f)
    by_hand = cast(F.conv2d(cast(x, f), weight, cast(conv.bias, f)), f)
    assert torch.equal(simulator.build(uniform(workload, text))(x), by_hand)


def test_fp16_overflows_to_infinity_where_bf16_does_not() -> None:
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data.fill_(300.0)
    model, x = nn.Sequential(linear).eval(), torch.full((1, 2), 200.0)
    workload, calibration = prepared(model, x)
    # 2 x 300 x 200 = 120,000 > 65,504
    assert apply(model, workload, uniform(workload, "fp16"), calibration)(x).item() == float("inf")
    assert apply(model, workload, uniform(workload, "bf16"), calibration)(x).item() == 119_808.0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.Linear(6, 4), (2, 3, 6)),
    ],
)
def test_every_weighted_layer_kind_is_simulated_with_a_small_int8_and_a_larger_int4_error(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    model, x = nn.Sequential(layer).eval(), seeded(*shape)
    workload, calibration = prepared(model, x)
    errors = {}
    with torch.inference_mode():
        exact = model(x)
        for text in ("fp16", "int8", "int4/int8", "int4"):
            y = apply(model, workload, uniform(workload, text), calibration)(x)
            errors[text] = float((y - exact).norm() / exact.norm())
    assert 0 < errors["fp16"] < errors["int8"] < errors["int4/int8"] < errors["int4"]
    assert errors["fp16"] < 1e-3
    assert errors["int8"] < 0.03
    assert errors["int4/int8"] < 0.15


def test_an_embedding_quantizes_its_rows_and_not_its_indices() -> None:
    embedding = nn.Embedding(10, 4)
    model, x = nn.Sequential(embedding).eval(), torch.tensor([[1, 9]])
    workload, calibration = prepared(model, x)
    simulator = Simulator(model, workload, calibration)
    stored = simulator.stored(workload.layers[0], FORMATS["int8"]).weight
    assert stored.scales.shape == (10,)
    assert torch.equal(simulator.build(uniform(workload, "int8"))(x), stored.dequantize()[[1, 9]][None])
    half = simulator.build(uniform(workload, "int8/fp16"))(x)
    assert torch.equal(half, cast(half, FORMATS["fp16"]))


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("text", ["int4/int8", "int8", "fp16", "int4/bf16"])
def test_the_original_is_bit_identical_afterwards(text: str) -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    before, types = state_bytes(model), [type(m) for m in model.modules()]
    output = model(x)
    workload, calibration = prepared(model, x)
    built = apply(model, workload, uniform(workload, text), calibration)
    built(x)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(7.0)
    assert state_bytes(model) == before
    assert [type(m) for m in model.modules()] == types
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(x), output)


def test_an_all_fp32_assignment_is_bit_identical_to_the_model() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    assert torch.equal(apply(model, workload, uniform(workload, "fp32"), calibration)(x), model(x))


def test_only_the_assigned_layers_change() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    mixed = Assignment.of({name: Precision.parse("int4/int8" if name == "2" else "fp32") for name in ("0", "2", "4")})
    built = Simulator(model, workload, calibration).build(mixed)
    assert built[0].weight is model[0].weight
    assert built[4].weight is model[4].weight
    assert built[2].weight is not model[2].weight
    assert built[2].bias is model[2].bias or torch.equal(built[2].bias, model[2].bias)


def test_candidates_of_one_simulator_share_their_weights_and_do_not_disturb_each_other() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    simulator = Simulator(model, workload, calibration)
    first = simulator.build(uniform(workload, "int8"))
    output = first(x)
    other = simulator.build(uniform(workload, "int4/int8"))
    other(x)
    again = simulator.build(uniform(workload, "int8"))
    assert again[0].weight is first[0].weight
    assert torch.equal(first(x), output)
    assert torch.equal(again(x), output)
    assert torch.equal(apply(model, workload, uniform(workload, "int8"), calibration)(x), output)


class Twice(nn.Module):
    """Runs one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(10 * self.layer(x))


def test_each_call_of_a_module_has_its_own_activation_range_and_they_share_one_precision() -> None:
    model, x = Twice().eval(), seeded(16, 4)
    workload = workload_of(model, "layer", "layer@1")
    calibration = calibrate(model, workload, [(x,)], stack=NEAREST, observer="minmax")
    scales = [calibration.quantizer(name, 0, FORMATS["int8"]).scale for name in workload.layer_names]
    assert scales[0] == pytest.approx(float(x.max() - x.min()) / 255)
    assert scales[1] != pytest.approx(scales[0])
    built = apply(model, workload, uniform(workload, "int8"), calibration)
    for _ in range(2):
        assert torch.allclose(built(x), model(x), atol=0.5)
    mixed = Assignment.of({"layer": Precision.parse("int8"), "layer@1": Precision.parse("int4/int8")})
    with pytest.raises(InputError, match="takes one precision"):
        apply(model, workload, mixed, calibration)


def test_an_assignment_that_does_not_fit_the_model_is_an_error() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    with pytest.raises(InputError, match=r"leaves layers out.*'2'"):
        apply(model, workload, Assignment.uniform(["0", "4"], Precision.parse("int8")), calibration)
    with pytest.raises(InputError, match=r"model has not.*'7'"):
        apply(model, workload, Assignment.uniform(["0", "2", "4", "7"], Precision.parse("int8")), calibration)


def test_another_models_calibration_is_an_error() -> None:
    x = seeded(2, 3, 8, 8)
    _, calibration = prepared(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), x)
    model = small_network()
    with pytest.raises(InputError, match=r"of another model.*no ranges for 2, 4"):
        Simulator(model, workload_of(model), calibration)


def test_parametrized_and_infinite_weights_are_errors() -> None:
    model, x = small_network(), seeded(2, 3, 8, 8)
    workload, calibration = prepared(model, x)
    broken = copy.deepcopy(model)
    broken[0].weight.data[0] = float("inf")
    with pytest.raises(InputError, match=r"0\.weight.*inf"):
        apply(broken, workload, uniform(workload, "int8"), calibration)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(InputError, match="not a plain parameter"):
        apply(model, workload, uniform(workload, "int8"), calibration)


def test_a_built_model_is_used_by_keyword_too() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model, x = ByKeyword().eval(), seeded(3, 4)
    workload, calibration = prepared(model, x)
    y = apply(model, workload, uniform(workload, "int4"), calibration)(x)
    assert not torch.equal(y, model(x))
