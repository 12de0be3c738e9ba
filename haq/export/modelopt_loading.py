"""The function that a written Model Optimizer loader carries with it, beside those of `haq.export.loading`."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from haq.export.loading import compute_in, load_numbers


def quantize_with_modelopt(
    model: nn.Module, config: dict[str, Any], layers: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Tensor]
) -> nn.Module:
    """The model, changed in place, with its numbers and Model Optimizer's quantizers in the ranges that haq chose.

    layers: module name -> `largest` (weight code; 0: a float weight) and `dtype` (of arithmetic). stored: as
    `load_numbers` takes it. Raises RuntimeError where the model's quantizers are not those of the rules.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import TensorQuantizer

    load_numbers(model, stored)
    for name, layer in layers.items():
        if layer["dtype"] != "float32":
            compute_in(model.get_submodule(name), getattr(torch, layer["dtype"]))
    model = mtq.quantize(model, config)
    for name, layer in layers.items():
        if layer["largest"]:
            quantizer: Any = model.get_submodule(name).weight_quantizer
            amax = stored[f"scales/{name}.weight"] * layer["largest"]
            quantizer.reset_amax()  # a range is written into memory of the old one's dtype and shape
            quantizer.amax = amax.reshape(-1, 1) if f"group/{name}.weight" in stored else amax
    modules = model.named_modules()
    enabled = [name for name, m in modules if isinstance(m, TensorQuantizer) and m.is_enabled]
    for rule in config["quant_cfg"][1:]:
        found = [name for name in enabled if fnmatch.fnmatchcase(name, rule["quantizer_name"])]
        if len(found) != 1:
            raise RuntimeError(f"rule {rule['quantizer_name']!r} matches {found or 'no quantizer'}, not exactly one")
    if len(enabled) != len(config["quant_cfg"]) - 1:
        raise RuntimeError(f"{len(enabled)} quantizers are on, the rules name {len(config['quant_cfg']) - 1}")
    return model
