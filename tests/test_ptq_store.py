"""What is quantized once is kept: in memory or mapped from files, under everything it depends on."""

import torch
from test_simulate import seeded, uniform
from torch import nn

from haq.nn.calibrate import calibrate
from haq.nn.ptq import layers as layers_module
from haq.nn.ptq.layers import QuantizedLayers, Recipe
from haq.nn.ptq.store import Store
from haq.nn.simulate import Simulator
from haq.nn.trace import trace
from haq.precision import FORMATS, Precision
from haq.techniques import Stack

INT4 = Precision.parse("int4/int8")


def network() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval(), seeded(6, 3, 8, 8)


def test_tensors_come_back_mapped_from_the_folder_and_damage_counts_as_absence(tmp_path) -> None:
    tensors = {"codes": torch.arange(6, dtype=torch.int8).reshape(2, 3), "scales": torch.tensor([0.5, 2.0])}
    Store(tmp_path / "kept").put("a", tensors)
    found = Store(tmp_path / "kept").get("a")
    assert found is not None
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    (tmp_path / "kept" / "a.pt").write_bytes(b"not a file of tensors")
    assert Store(tmp_path / "kept").get("a") is None
    assert Store(None).get("a") is None


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "below")
    store.put("a", {"x": torch.ones(1)})
    found = store.get("a")
    assert found is not None
    assert found["x"].item() == 1.0


def test_a_layer_is_quantized_once_per_precision_and_by_no_later_run(tmp_path, monkeypatch) -> None:
    made = []

    def counted(weight, fmt, stack, inputs):
        made.append((weight.name, fmt.name))
        return stored_layer(weight, fmt, stack, inputs)

    stored_layer = layers_module.stored_layer
    monkeypatch.setattr(layers_module, "stored_layer", counted)
    model, x = network()
    workload = trace(model, (x,), name="net")
    calibration = calibrate(model, workload, [(x,)])
    simulator = Simulator(model, workload, calibration, tmp_path)
    first = simulator.build(uniform(workload, "int4/int8"))
    simulator.build(uniform(workload, "int4/int8"))
    assert made == [("0.weight", "int4"), ("3.weight", "int4")]
    simulator.build(uniform(workload, "int8/int8"))
    assert len(made) == 4
    again = Simulator(model, workload, calibration, tmp_path).build(uniform(workload, "int4/int8"))
    assert len(made) == 4
    with torch.inference_mode():
        assert torch.equal(first(x), again(x))


def test_candidates_share_the_tensors_of_layers_they_have_in_common() -> None:
    model, x = network()
    workload = trace(model, (x,), name="net")
    simulator = Simulator(model, workload, calibrate(model, workload, [(x,)]))
    one, other = (simulator.build(uniform(workload, "int4/int8")) for _ in range(2))
    assert one[0].weight is other[0].weight
    assert one[0].weight is not model[0].weight


def test_what_is_kept_depends_on_weights_data_and_techniques(tmp_path) -> None:
    model, x = network()
    workload = trace(model, (x,), name="net")
    layer = workload.layers[0]

    def files(stack: Stack, data: torch.Tensor) -> int:
        layers = QuantizedLayers(model, workload, Recipe(stack, ((data,),), tmp_path))
        layers.stored(layer, FORMATS["int4"])
        return len(list(tmp_path.glob("*.pt")))

    data_free, corrected = Stack.of(["mse"]), Stack.of(["mse", "bias_correction"])
    assert [files(data_free, x), files(data_free, x + 1)] == [1, 1]
    assert [files(corrected, x), files(corrected, x + 1), files(corrected, x)] == [2, 3, 3]
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert files(data_free, x) == 4


def test_the_corrected_bias_and_the_codes_are_what_runs() -> None:
    model, x = network()
    workload = trace(model, (x,), name="net")
    stack = Stack.of(["mse", "bias_correction"])
    simulator = Simulator(model, workload, calibrate(model, workload, [(x,)], stack=stack))
    built = simulator.build(uniform(workload, "int4/int8"))
    stored = simulator.stored(workload.layers[0], FORMATS["int4"])
    assert stored.shift is not None
    assert torch.equal(built[0].weight, stored.weight.dequantize())
    assert torch.allclose(built[0].bias, model[0].bias + stored.shift)
    assert float(stored.shift.abs().amax()) > 0
