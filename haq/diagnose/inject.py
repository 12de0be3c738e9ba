"""Plants one known fault in a network or a config, to see whether a diagnosis finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from haq.candidate import config_id
from haq.diagnose.cost_faults import BATCH, plant_no_speedup, plant_not_executed
from haq.diagnose.strengths import COST_MODES, STRENGTHS, check_strength
from haq.errors import InputError, lookup, nearest
from haq.hardware.cost import estimate
from haq.hardware.legalize import legalize
from haq.hardware.profile import load_profile
from haq.precision import BIT_WIDTHS, Assignment
from haq.spacefile import space_of_config

if TYPE_CHECKING:
    from torch import nn

    from haq.nn.diagnosis.subject import Subject
    from haq.workload import Workload

MODEL_MODES = ("channel-imbalance", "float-range")
"""What can be planted in an FP32 network: rescalings that leave its function."""
CONFIG_MODES = (*COST_MODES, "sensitive-operator")
"""What can be planted in a config: what it asks for. The strength of sensitive-operator is the bits of the layer."""


@overload
def inject(what: Subject, mode: str, layer: str, strength: float, seed: int = 0, *, example: Any = None) -> Subject: ...
@overload
def inject(
    what: nn.Module, mode: str, layer: str, strength: float, seed: int = 0, *, example: Any = None
) -> nn.Module: ...
@overload
def inject(
    what: Mapping[str, Any], mode: str, layer: str, strength: float, seed: int = 0, *, example: Any = None
) -> dict[str, Any]: ...
def inject(what: Any, mode: str, layer: str, strength: float, seed: int = 0, *, example: Any = None) -> Any:
    """A new subject, network or config with the fault; what was given stays as it is. Same seed, same fault.

    what: a `Subject` (a quantized network: the ten modes of accuracy), an FP32 `nn.Module` in eval mode, batch norm
    folded (channel-imbalance and float-range, which leave its function), or a config's content (not-executed,
    no-speedup, sensitive-operator: what its layers ask for is rewritten, with formats, fallbacks and modelled figures;
    measured figures are dropped, since they are another network's). mode, strength: see
    `haq.diagnose.strengths.STRENGTHS`. layer: by its name in the workload. example: a batch of inputs, which only an
    `nn.Module` needs. Raises InputError on an unknown mode or layer, a layer or a kind of thing in which the mode
    cannot be planted, and a strength that makes no sense, each with what is known.
    """
    lookup(STRENGTHS, mode, "failure mode")
    if isinstance(what, Mapping):
        return _in_config(what, mode, layer, strength)
    check_strength(mode, strength)
    from haq.nn.diagnosis.subject import Subject

    if isinstance(what, Subject):
        return _in_subject(what, mode, layer, strength, seed)
    return _in_model(what, mode, layer, strength, seed, example)


def _in_subject(subject: Subject, mode: str, layer: str, strength: float, seed: int) -> Subject:
    import numpy as np

    from haq.nn.diagnosis.faults import FAULTS, places

    _check_mode(mode, tuple(FAULTS), "a quantized network")
    _check_layer(layer, subject.workload.layer_names, subject.workload.name)
    _check_layer(layer, places(subject, mode), f"{subject.workload.name}, {mode}")
    return FAULTS[mode](subject, layer, strength, np.random.default_rng(seed))


def _in_model(model: Any, mode: str, layer: str, strength: float, seed: int, example: Any) -> Any:
    import numpy as np

    from haq.nn.diagnosis.fault_models import imbalanced, out_of_fp16, traced

    workload = traced(model, example)
    _check_mode(mode, MODEL_MODES, "an FP32 network")
    _check_layer(layer, workload.layer_names, workload.name)
    if mode == "float-range":
        return out_of_fp16(model, workload, example, layer, strength)
    return imbalanced(model, workload, example, layer, (strength, np.random.default_rng(seed)))


def _in_config(config: Mapping[str, Any], mode: str, layer: str, strength: float) -> dict[str, Any]:
    _check_mode(mode, CONFIG_MODES, "a config")
    target = config.get("target", {})
    if "name" not in target or "layers" not in config:
        raise InputError("the config names no target or no layers", where="inject", expected="a config of `haq search`")
    profile, workload = load_profile(target["name"]), _workload(config)
    _check_layer(layer, workload.layer_names, workload.name)
    raw = {**config["layers"], **config.get("requested_bits", {})}
    requested = Assignment.from_json({name: raw[name] for name in workload.layer_names if name in raw})
    if mode == "sensitive-operator":
        if strength not in BIT_WIDTHS:
            raise InputError("not a bit-width", where=mode, got=strength, expected=f"one of {BIT_WIDTHS}")
        planted = Assignment.of({**requested, layer: int(strength)})
    else:
        check_strength(mode, strength)
        plant = plant_not_executed if mode == "not-executed" else plant_no_speedup
        planted = plant(workload, requested, profile, layer, int(strength))
    legal = legalize(workload, planted, profile)
    costs = estimate(workload, legal.executed, profile, batch=target.get("batch", BATCH)).figures()
    kept = {key: value for key, value in config.items() if key not in ("parameters", "parameters_sha256")}
    return {
        **kept,
        "id": config_id(legal.executed, target["name"]),
        "layers": legal.executed.to_json(),
        "requested_bits": {name: bits for name, bits in planted.to_json().items() if isinstance(bits, int)},
        "fallbacks": [fallback.to_json() for fallback in legal.fallbacks],
        "metrics": {name: {"value": value, "kind": "modelled"} for name, value in sorted(costs.items())},
    }


def _workload(config: Mapping[str, Any]) -> Workload:
    """The config's network, traced without weights; only a shipped space is loaded because a config names it."""
    from haq.nn.bundle import load_bundle
    from haq.nn.fold import fold_batch_norm
    from haq.nn.trace import trace

    bundle = load_bundle(space_of_config(config, None, where="inject"), with_data=False)
    return trace(fold_batch_norm(bundle.model, bundle.example), bundle.example, name=bundle.name)


def _check_mode(mode: str, known: Sequence[str], what: str) -> None:
    if mode not in known:
        raise InputError(
            f"this fault cannot be planted in {what}", where="inject", got=mode, expected=f"one of {', '.join(known)}",
            way_out="a Subject takes faults of accuracy, a config faults of cost",
        )  # fmt: skip


def _check_layer(layer: str, known: Sequence[str], where: str) -> None:
    if layer not in known:
        shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        raise InputError(
            "the fault cannot be planted here", where=where, got=layer, expected=f"one of {shown or 'no layer at all'}",
            way_out=nearest(layer, known),
        )  # fmt: skip
