"""Flax linen twins of the built-in networks, built from the torch modules themselves."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch

from haq.errors import lookup
from haq.export.flax_twins.twin import Net, Twin, chain

FAMILIES: Mapping[str, str] = {
    "haq.nn.models.resnet": "haq.export.flax_twins.resnet",
    "haq.nn.models.mobilenet_v3": "haq.export.flax_twins.mobilenet_v3",
    "haq.nn.models.efficientnet_lite": "haq.export.flax_twins.efficientnet_lite",
    "haq.nn.models.bert": "haq.export.flax_twins.bert",
}
"""The module that a network's class is written in -> the module with its forward passes in JAX."""


def flax_twin(model: torch.nn.Module, dtypes: Mapping[str, str]) -> Twin:
    """A linen module that computes what `model` does, whose module paths are torch's names with slashes for dots.

    model: in eval mode, batch norm folded; only its structure is read, so that it may be on the meta device. dtypes:
    module path -> "bfloat16" or "float16", where a layer does not multiply in float32. Images are (batch, height,
    width, channels); a text classifier takes token ids and attention mask. Raises InputError on a network of no
    family, and when it runs on a module that has no twin.
    """
    family = importlib.import_module(lookup(FAMILIES, type(model).__module__, "network with a Flax twin"))
    forwards = {torch.nn.Sequential: chain, torch.nn.ModuleList: chain, **family.FORWARDS}
    return Twin(model, Net(forwards, dict(dtypes)))
