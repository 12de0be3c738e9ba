"""The function that a written torchao loader carries with it, beside those of `haq.export.loading`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from haq.export.loading import compute_in, load_numbers


def quantize_with_torchao(
    model: nn.Module, config: dict[str, Any], dtypes: Mapping[str, str], stored: Mapping[str, Tensor]
) -> nn.Module:
    """The model, changed in place, quantized by torchao and then given the codes and scales that haq chose.

    torchao finds scales of its own, which haq's replace. config: of `config_to_dict`. dtypes: module name -> of its
    arithmetic, where not float32. stored: as `load_numbers` takes it. Raises RuntimeError where a name fits no layer.
    """
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    load_numbers(model, stored)
    for name, dtype in dtypes.items():
        compute_in(model.get_submodule(name), getattr(torch, dtype))
    quantize_(model, config_from_dict(config), filter_fn=None)
    modules = dict(model.named_modules())
    for name in config["_data"]["fqn_to_config"]:
        weight: Any = getattr(modules.get(name), "weight", None)
        if not hasattr(weight, "qdata"):
            raise RuntimeError(f"torchao quantized no weight of {name!r}: it ignores names that fit no layer")
        weight.qdata.copy_(stored[f"codes/{name}.weight"])
        weight.scale.copy_(stored[f"scales/{name}.weight"])
        weight.zero_point.zero_()
    return model
