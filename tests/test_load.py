"""`haq.load`: the quantized network of a config, of a model in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_configs import content, images, network

import haq
from haq.errors import InputError
from haq.export import EXPORTERS
from haq.nn.checkpoints import weights_hash
from haq.nn.exportable import exportable
from haq.nn.fold import fold_batch_norm
from haq.nn.prepare import Quantization, bundle_in_memory, quantizable
from haq.nn.trace import trace
from haq.precision import FP32, Assignment
from haq.techniques import Stack

MIXED = ("int4/int8", "int8/int8", "fp16/fp16")
DATA = [(images(1, 16),), (images(2, 16),)]


@pytest.mark.parametrize("ptq", [["bn_fold", "mse"], ["bn_fold", "cle", "output_mse", "gptq", "bn_reestimation"]])
def test_it_computes_what_the_search_measures(ptq: list[str]) -> None:
    model = network()
    raw = content(model, MIXED, quantization={"ptq": ptq, "observer": "percentile"})
    folded = fold_batch_norm(model, DATA[0])
    workload = trace(folded, DATA[0], name="Sequential")
    how = Quantization(Stack.of(ptq), "percentile")
    measured = quantizable(folded, workload, tuple(DATA), how).build(haq.Config.of(raw).layers)
    loaded, x = haq.load(raw, model, calibration=DATA), images(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), measured(x), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(loaded(x), model(x), rtol=1e-6, atol=1e-6)


def test_a_path_a_dict_and_a_config_are_the_same_and_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model, x = network(), images(3, 8)
    before, raw = weights_hash(model), content(model, MIXED)
    (tmp_path / "c.json").write_text(json.dumps(raw))
    outputs = []
    for config in (tmp_path / "c.json", str(tmp_path / "c.json"), raw, haq.Config.load(tmp_path / "c.json")):
        loaded = haq.load(config, model, calibration=DATA)
        with torch.no_grad():
            outputs.append(loaded(x))
            for parameter in loaded.parameters():
                parameter.add_(1)
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert weights_hash(model) == before


def test_an_exported_config_needs_no_data(tmp_path: Path) -> None:
    model, x = network(), images(3, 8)
    raw = content(model, MIXED)
    bundle = bundle_in_memory(model, DATA, lambda candidate: 0.0, None)
    EXPORTERS["json"](exportable(raw, bundle, tmp_path / "from.json"), tmp_path / "config.json", {})
    loaded = haq.load(tmp_path / "config.json", model, example=(x,))
    with torch.no_grad():
        expected = haq.load(raw, model, calibration=DATA)(x)
        torch.testing.assert_close(loaded(x), expected, rtol=1e-6, atol=1e-6)
    (tmp_path / "config.safetensors").unlink()
    with pytest.raises(InputError, match=r"\$\.parameters is wrong; got .*config\.safetensors"):
        haq.load(tmp_path / "config.json", model, example=(x,))


def test_other_weights_are_refused_naming_both_hashes() -> None:
    model, other = network(), network(seed=1)
    with pytest.raises(InputError) as caught:
        haq.load(content(model, MIXED), other, calibration=DATA)
    assert weights_hash(model) in str(caught.value)
    assert weights_hash(other) in str(caught.value)


def test_data_is_asked_for_where_it_is_needed() -> None:
    model = network()
    with pytest.raises(InputError, match=r"no input to trace the network with.*example="):
        haq.load(content(model, MIXED), model)
    with pytest.raises(InputError, match=r"needs calibration data; got 'no parameters file'.*calibration="):
        haq.load(content(model, MIXED), model, example=DATA[0])


def test_layers_that_are_not_the_networks_are_refused() -> None:
    model = network()
    raw = content(model, MIXED, id="by-hand", requested_bits={"a": 8}, layers={"a": "int8/int8"})
    with pytest.raises(InputError, match=r"layers are not the network's; got 'a'; expected the 3 layers"):
        haq.load(raw, model, calibration=DATA)
    raw = content(model, MIXED, id="by-hand", requested_bits={"0": 8}, layers={"0": "int8/int8"})
    with pytest.raises(InputError, match="got \"1 layers, not '3'\""):
        haq.load(raw, model, calibration=DATA)


def test_fp32_everywhere_is_the_network_itself() -> None:
    model, x = network(), images(3, 8)
    loaded = haq.load(content(model, (str(FP32),) * 3), model, calibration=DATA)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    assert Assignment.uniform(("0", "3", "7"), FP32) == haq.Config.of(content(model, (str(FP32),) * 3)).layers
