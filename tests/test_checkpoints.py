"""Checkpoints are read without running code, and what does not fit is named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from haq.errors import InputError
from haq.nn.checkpoints import fit_state, load_state, state_hash, weights_hash
from haq.nn.models.densenet import densenet121
from haq.nn.models.googlenet import googlenet


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_loads_with_and_without_wrapper_and_prefix(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    expected = network().state_dict()
    state: object = {prefix + key: value for key, value in expected.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    loaded = load_state(tmp_path / "w.pt")
    assert list(loaded) == list(expected)
    assert state_hash(loaded) == state_hash(expected)


def test_a_safetensors_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(network().state_dict(), tmp_path / "weights.bin")
    assert state_hash(load_state(tmp_path / "weights.bin")) == weights_hash(network())


def test_a_pickle_with_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    victim = tmp_path / "created"
    torch.save({"fc": Evil(victim)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(victim)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(InputError, match=r"could run code, and is not loaded.*torch\.save\(model\.state_dict"):
            load_state(tmp_path / name)
    assert not victim.exists()


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds Python objects"):
        load_state(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip", bytes(100)])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_state(tmp_path / "w.pt")
    assert str(tmp_path / "w.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_state(tmp_path / "nothing.pt")


@pytest.mark.parametrize("content", [{}, [1, 2], {"weight": 3.0}, torch.zeros(2)])
def test_what_is_no_state_dict_is_said(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load_state(tmp_path / "w.pt")


def test_missing_unexpected_and_mis_shaped_keys_are_named_and_the_model_stays() -> None:
    model = network()
    before = weights_hash(model)
    state = {**model.state_dict(), "extra.weight": torch.zeros(1), "0.weight": torch.zeros(4, 5)}
    del state["2.bias"]
    with pytest.raises(InputError) as caught:
        fit_state(model, state, where="w.pt")
    text = str(caught.value)
    assert "1 missing (2.bias), 1 unexpected (extra.weight), 1 other shape (0.weight (4, 5))" in text
    assert "0.weight (4, 3)" in text
    assert weights_hash(model) == before


def test_a_checkpoint_without_batch_norm_counters_fits() -> None:
    state = {key: value + 1 for key, value in network().state_dict().items() if "num_batches" not in key}
    model = network()
    fit_state(model, state, where="w.pt")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_half_precision_weights_are_loaded_as_fp32() -> None:
    model = network()
    fit_state(model, {key: v.half() if v.is_floating_point() else v for key, v in model.state_dict().items()}, where="")
    assert model[0].weight.dtype == torch.float32


def test_weights_that_are_not_finite_are_refused() -> None:
    state = network().state_dict()
    state["2.bias"] = torch.tensor([float("nan"), 0.0])
    with pytest.raises(InputError, match=r"not finite.*2\.bias"):
        fit_state(network(), state, where="w.pt")


def test_the_hash_depends_on_names_shapes_formats_and_bytes_and_not_on_order() -> None:
    def hashed(**state: Tensor) -> str:
        return state_hash(state)

    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    base = hashed(a=a, b=b)
    assert len(base) == 64
    assert hashed(b=b, a=a) == base
    assert base not in {
        hashed(a=a),
        hashed(a=a, c=b),
        hashed(a=a, b=torch.tensor([3.0])),
        hashed(a=a, b=b.double()),
        hashed(a=a.flip(0), b=b),
    }


def test_torchvisions_files_fit_though_they_use_old_names_or_hold_auxiliary_heads() -> None:
    torch.manual_seed(0)
    dense, google = densenet121(num_classes=2).state_dict(), googlenet(num_classes=2).state_dict()
    # As in densenet121-a639ec97.pth: features.denseblock1.denselayer1.norm.1.weight
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in dense.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    for factory, state in (
        (densenet121, old),
        (googlenet, {**google, "aux1.fc2.bias": torch.zeros(2), "aux2.conv.conv.weight": torch.zeros(128, 528, 1, 1)}),
    ):
        model = factory(num_classes=2)
        fit_state(model, state, where="w.pt")
        assert weights_hash(model) == state_hash(dense if factory is densenet121 else google)
