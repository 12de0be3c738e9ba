"""Runs a written qwix export in JAX: the network's Flax twin under the file's rules, with the file's numbers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.errors import InputError
from haq.export.flax_twins import flax_twin
from haq.export.qwix_params import SCHEMA
from haq.export.qwix_provider import HaqProvider, load_params
from haq.export.qwix_rules import DTYPES, Rule, checked
from haq.nn.task import Inputs
from haq.nn.tensorfile import read_tensors
from haq.precision import Precision

FORMATS = {dtype: name for name, dtype in DTYPES.items()}


class QwixRun:
    """The export as a function of a batch, compiled by XLA for each new shape.

    file: what `haq export --format qwix` wrote. model: the network, batch norm folded, of which only the structure is
    used, so that it may be on the meta device. example: inputs of the shapes that it takes. Raises InputError on a file
    that is damaged or of another network, and on a rule that was not applied to exactly one module.
    """

    def __init__(self, file: Path, model: nn.Module, example: Inputs) -> None:
        self.facts, _ = read_tensors(file, SCHEMA)
        self._order = tuple(inspect.signature(model.forward).parameters)
        layers = (name.partition("@")[0] for name in self.facts["config"]["layers"])
        modules = {name.replace(".", "/") for name in (*dict(model.named_modules()), *layers)}
        checked([Rule(**rule) for rule in self.facts["rules"]], sorted(modules))
        self._provider = HaqProvider([qwix.QuantizationRule(**rule) for rule in self.facts["rules"]])
        self.variables = load_params(file)
        self.module = qwix.quantize_model(flax_twin(model, self.facts["dtypes"]), self._provider)
        self.compiled = jax.jit(self.module.apply)
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self.arrays(example, read=False)]
        try:
            jax.eval_shape(self.module.apply, self.variables, *shapes)
        except (FlaxError, TypeError) as error:
            got = str(error).splitlines()[0][:160]
            raise InputError("the parameters are not of this network", where=str(file), got=got) from None
        for index, paths in self._provider.matched.items():
            if len(paths) != 1:
                raise InputError(
                    "a rule has to fit one module of the twin", where=self.facts["rules"][index]["module_path"],
                    got=", ".join(sorted(paths)) or "none", expected="exactly one",
                )  # fmt: skip

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """(n, classes) logits of a batch."""
        return np.asarray(self.compiled(self.variables, *self.arrays(inputs)), dtype=np.float32)

    def arrays(self, inputs: Inputs, *, read: bool = True) -> list[Any]:
        """The inputs as the twin takes them: by position, images channels-last. read: else their shapes alone count."""
        named = inputs if isinstance(inputs, dict) else dict(zip(self._order, inputs, strict=False))
        tensors = [named[name] for name in self._order if name in named]
        last = [tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor for tensor in tensors]
        return [_array(tensor) if read else np.empty(tuple(tensor.shape), _dtype(tensor)) for tensor in last]

    def precisions(self) -> dict[str, Precision | None]:
        """Layer -> what is stored and what the rules make of its input, read back; None where the file has no layer."""
        params = flatten_dict(self.variables["params"], sep="/")
        return {name: self._precision(name, params, text) for name, text in self.facts["config"]["layers"].items()}

    def _precision(self, layer: str, params: Mapping[str, Any], asked: str) -> Precision | None:
        path = layer.partition("@")[0].replace(".", "/")
        rule: Mapping[str, Any] = next(
            (rule for rule in self.facts["rules"] if re.fullmatch(rule["module_path"], path)), {}
        )
        wide = FORMATS[self.facts["dtypes"].get(path, "float32")]
        table, kernel = params.get(f"{path}/embedding"), params.get(f"{path}/kernel")
        if table is None and kernel is None:
            if "matmul_" not in path:
                return None
            both = rule.get("act_qtype", wide)
            return Precision.parse(f"{both}/{both}")
        dynamic = "act_qtype" in rule and not rule.get("act_static_scale")
        read = "int8t" if dynamic else rule.get("act_qtype", wide)
        if table is not None and Precision.parse(asked).activation.is_integer:
            read = Precision.parse(asked).activation.name  # the operand is an index
        return Precision.parse(
            f"{_stored(table if kernel is None else kernel, axis=-1 if kernel is None else -2)}/{read}"
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of all numbers in the file, without its header."""
        return sum(_bytes(leaf) for leaf in jax.tree.leaves(self.variables))


def _stored(parameter: Any, axis: int) -> str:
    """The format of a parameter; axis: the one along which scales have groups."""
    if isinstance(parameter, jax.Array):
        return FORMATS[parameter.dtype.name]
    codes, scales = parameter.array.qvalue, parameter.array.scale
    groups = scales.shape[axis]
    return codes.dtype.name if groups == 1 else f"{codes.dtype.name}g{codes.shape[axis] // groups}"


def _bytes(leaf: Any) -> int:
    size = int(leaf.size)
    return (size + 1) // 2 if leaf.dtype == jnp.int4 else size * int(leaf.dtype.itemsize)


def _array(tensor: Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy().astype(_dtype(tensor)))


def _dtype(tensor: Tensor) -> str:
    return "float32" if tensor.is_floating_point() else "int32"


def embedded_config(file: Path) -> dict[str, Any]:
    """The config that the file was made from; raises InputError on a file that is damaged or of another format."""
    config: dict[str, Any] = json.loads(json.dumps(read_tensors(file, SCHEMA)[0]["config"]))
    return config
