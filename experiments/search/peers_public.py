"""Let one public tool choose 4 or 8 bits for every layer of a network, within size budgets; imports no haq.

    PYTHONPATH=REPOSITORY python peers_public.py TOOL FOLDER

Run by peers.py with the Python of the peers' own environment. Reads FOLDER/network.pt, what `peers.py` wrote there: the
FP32 network with batch norm folded (unpickled, hence the repository on the path), the calibration batches, the elements
of every weight, and the budgets in bytes of packed weights. Writes FOLDER/TOOL.json: per budget the bits of every layer
(32: left unquantized), the wall time without imports, as if this were the only budget, and how many samples went
through the network (forward passes alone, backward ones are not counted).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

Inputs = Any
"""One batch: a tuple of positional tensors, or a dict of keyword tensors."""


@dataclass(frozen=True, eq=False)
class Network:
    """What peers.py hands over. weights: layer -> elements of its weight. budgets: name -> bytes of all weights."""

    model: nn.Module
    calibration: list[Inputs]
    weights: Mapping[str, int]
    budgets: Mapping[str, float]

    @property
    def samples(self) -> int:
        return sum(_samples(batch) for batch in self.calibration)

    def bits_per_weight(self, budget: str) -> float:
        return 8 * self.budgets[budget] / sum(self.weights.values())


@dataclass(frozen=True)
class Choice:
    """What a tool chose for one budget, and what that took."""

    bits: Mapping[str, int]
    wall_s: float
    sample_forwards: int


@dataclass(frozen=True)
class Tool:
    """choose: (network) -> budget name -> choice."""

    package: str
    settings: str
    choose: Callable[[Network], dict[str, Choice]]


def modelopt(method: str) -> Callable[[Network], dict[str, Choice]]:
    """NVIDIA ModelOpt: scores every (layer, format) once, then solves for each budget anew."""

    def choose(network: Network) -> dict[str, Choice]:
        import modelopt.torch.quantization as mtq

        # Labels are not among the calibration data: the gradient method gets FP32's own answers in their place.
        data = [{"inputs": batch, "answers": _answers(network.model, batch)} for batch in network.calibration]
        formats = [_modelopt_format(bits) for bits in (4, 8)]
        # Its third choice, to leave a layer alone, is ruled out: nobody else has it, and no budget leaves room for it.
        space = {"module_name_patterns": ["*"], "quantization_formats": formats, "allow_no_quant": False}
        loss = {"loss_func": lambda output, batch: nn.functional.cross_entropy(_logits(output), batch["answers"])}
        with _counted(network) as forwards:
            start = time.perf_counter()
            _, state = mtq.auto_quantize(
                copy.deepcopy(network.model),
                {"effective_bits": 8.0},
                quantization_formats=formats,
                data_loader=data,
                forward_step=lambda model, batch: _logits(_forward(model, batch["inputs"])),
                num_calib_steps=len(data),
                num_score_steps=len(data),
                method=method,
                module_search_spaces=[space],
                **(loss if method == "gradient" else {}),
            )
            scoring = time.perf_counter() - start
        found = {}
        for budget in network.budgets:
            start = time.perf_counter()
            solved = mtq.get_auto_quantize_config(state, {"effective_bits": network.bits_per_weight(budget)})
            rows = {row["quantizer_name"]: row for row in solved["quant_cfg"]}
            bits = {name: _modelopt_bits(rows.get(f"{name}.weight_quantizer")) for name in network.weights}
            found[budget] = Choice(bits, scoring + time.perf_counter() - start, forwards.samples)
        return found

    return choose


def _modelopt_format(bits: int) -> dict[str, Any]:
    """Weights per output channel, activations int8 with one scale, as haq's own formats."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        ],
        "algorithm": "max",
        "effective_bits": float(bits),  # else it would count the activations' bits too
    }


def _modelopt_bits(row: Mapping[str, Any] | None) -> int:
    # A row keeps what differs from the default only, which is 8 bits.
    return int(row.get("cfg", {}).get("num_bits", 8)) if row is not None and row["enable"] else 32


def mct(network: Network) -> dict[str, Choice]:
    """Sony MCT's mixed precision: everything anew for each budget, as its interface has it."""
    _stand_in_for_edge_mdt()
    import model_compression_toolkit as tool
    from model_compression_toolkit.target_platform_capabilities import constants
    from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc

    wide, _, default = tpc.get_op_quantization_configs()
    narrow = wide.clone_and_edit(attr_to_edit={constants.KERNEL_ATTR: {constants.WEIGHTS_N_BITS: 4}})
    platform = tpc.generate_tpc(
        default_config=default, base_config=wide, mixed_precision_cfg_list=[wide, narrow], name="w4w8a8"
    )
    traceable = _with_constant_borders(network.model, network.calibration[0])

    def batches() -> Iterator[list[Any]]:
        for batch in network.calibration:
            yield [tensor.numpy() for tensor in batch]

    found = {}
    for budget, limit in network.budgets.items():
        search = tool.core.MixedPrecisionQuantizationConfig(num_of_images=network.samples)
        with _counted(network) as forwards:
            start = time.perf_counter()
            quantized, _ = tool.ptq.pytorch_post_training_quantization(
                copy.deepcopy(traceable),
                batches,
                tool.core.ResourceUtilization(weights_memory=limit),
                tool.core.CoreConfig(mixed_precision_config=search),
                platform,
            )
            seconds = time.perf_counter() - start
        found[budget] = Choice(_mct_bits(quantized, network.weights), seconds, forwards.samples)
    return found


def _mct_bits(quantized: nn.Module, layers: Mapping[str, int]) -> dict[str, int]:
    """The bits of every layer in MCT's model, where a dot in a name has become an underscore."""
    bits = {
        name.strip("_"): int(quantizer.num_bits)
        for name, module in quantized.named_modules()
        for quantizer in getattr(module, "weights_quantizers", {}).values()
    }
    names = {layer: layer.replace(".", "_").strip("_") for layer in layers}
    assert len(set(names.values())) == len(names), "two layers have one name in MCT"
    assert set(bits) <= set(names.values()), f"MCT renamed {set(bits) - set(names.values())}"
    return {layer: bits.get(name, 32) for layer, name in names.items()}


def _with_constant_borders(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model for this input size: MCT traces symbolically, and a SAME border depends on the size of its input."""
    border = getattr(sys.modules[type(model).__module__], "same_padded", None)
    if border is None:
        return model
    graph = fx.Tracer(autowrap_functions=(border,)).trace(model)
    traced = fx.GraphModule(model, graph)
    sizes: dict[fx.Node, Any] = {}

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            sizes[n] = result.shape if isinstance(result, Tensor) else None
            return result

    with torch.inference_mode():
        Sizes(traced).run(*inputs)
    for node in graph.nodes:
        if node.target is border:
            before = node.args[0]
            rows, columns = (sizes[node][axis] - sizes[before][axis] for axis in (-2, -1))
            sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            node.target, node.args = nn.functional.pad, (before, sides)
            node.meta.clear()  # that the function was wrapped
    traced.recompile()
    with torch.inference_mode():
        torch.testing.assert_close(traced(*inputs), model(*inputs))
    return traced


class _Layers(types.ModuleType):
    """A module in which every name is an empty layer class."""

    def __getattr__(self, name: str) -> type[nn.Module]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


def _stand_in_for_edge_mdt() -> None:
    """edge-mdt-cl insists on torchvision; MCT only asks whether a layer is one of its detection layers."""
    sys.modules["edgemdt_cl.pytorch"] = _Layers("edgemdt_cl.pytorch")


class _Forwards:
    """Counts samples by global hooks, since tools copy and rebuild the model: whatever is called from outside of any
    other module, with a tensor of the network's input shape."""

    def __init__(self, network: Network) -> None:
        self.samples, self._depth = 0, 0
        self._shape = _first(network.calibration[0]).shape[1:]

    def enter(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        if self._depth == 0 and tensors and tensors[0].shape[1:] == self._shape:
            self.samples += len(tensors[0])
        self._depth += 1

    def leave(self, module: nn.Module, *args: Any) -> None:
        self._depth -= 1


@contextlib.contextmanager
def _counted(network: Network) -> Iterator[_Forwards]:
    counter = _Forwards(network)
    hooks = nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(counter.enter),
        hooks.register_module_forward_hook(counter.leave, always_call=True),
    ]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()


def _first(batch: Inputs) -> Tensor:
    first: Tensor = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return first


def _samples(batch: Inputs) -> int:
    return len(_first(batch))


def _forward(model: nn.Module, batch: Inputs) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _answers(model: nn.Module, batch: Inputs) -> Tensor:
    with torch.no_grad():
        return _logits(_forward(model, batch)).argmax(dim=1)


TOOLS = {
    "modelopt-kl": Tool("nvidia-modelopt", "auto_quantize: kl_div", modelopt("kl_div")),
    "modelopt-gradient": Tool("nvidia-modelopt", "auto_quantize: gradient on FP32's answers", modelopt("gradient")),
    "mct": Tool("model-compression-toolkit", "mixed precision: defaults, all calibration images", mct),
}


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    tool = TOOLS[name]
    raw = torch.load(folder / "network.pt", weights_only=False)
    model = raw["model"].eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # ModelOpt's backward hooks do not go with it
    network = Network(model, raw["calibration"], raw["weights"], raw["budgets"])
    choices = tool.choose(network)
    found = {
        "network": raw["key"],
        "version": importlib.metadata.version(tool.package),
        "settings": tool.settings,
        "choices": {budget: vars(choice) for budget, choice in choices.items()},
    }
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
