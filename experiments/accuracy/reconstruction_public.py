"""Run the GPTQ and AdaRound of public libraries on one layer, on a grid that is given."""

from __future__ import annotations

import contextlib
import copy
import importlib.abc
import importlib.machinery
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from haq.nn.ptq.grid import Grid

BATCH = 32
"""Samples that AdaRound's authors and aimet-torch learn from at a time."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A Linear or Conv2d, its calibration inputs (n, ...) and the grid of its weight's rows."""

    module: nn.Linear | nn.Conv2d
    inputs: Tensor
    grid: Grid

    @property
    def scales(self) -> Tensor:
        """Per output channel, in the shape that multiplies the weight."""
        return self.grid.scales.reshape(-1, *[1] * (self.module.weight.dim() - 1))

    @property
    def depthwise(self) -> bool:
        return isinstance(self.module, nn.Conv2d) and self.module.groups > 1


@dataclass(frozen=True)
class Public:
    """One technique of one package. quantize: the layer's dequantized weight."""

    technique: str
    package: str
    settings: str
    quantize: Callable[[Layer], Tensor]
    takes: Callable[[Layer], bool] = lambda layer: True


def brevitas_gptq(layer: Layer) -> Tensor:
    from brevitas.graph.gptq import gptq_mode

    model = nn.Sequential(_brevitas_layer(layer))
    with torch.no_grad(), gptq_mode(model, act_order=True, use_quant_activations=False) as mode:
        for batch in layer.inputs.split(64 if layer.inputs.dim() > 2 else 4096):
            mode.model(batch)
        mode.update()
    return _brevitas_weight(model[0], layer)


def brevitas_adaround(iterations: int, rate: float, batch: int) -> Callable[[Layer], Tensor]:
    def run(layer: Layer) -> Tensor:
        from brevitas_examples.common.learned_round import learned_round_args as args
        from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
        from brevitas_examples.common.learned_round.learned_round_trainer import LearnedRoundTrainer, get_blocks
        from brevitas_examples.imagenet_classification.ptq.learned_round_utils import CacheVision, is_layer

        model = nn.Sequential(_brevitas_layer(layer))
        optimizer = args.OptimizerArgs(target_params="learned_round", optimizer_cls="Adam", lr=rate)
        optimizer.optimizer_kwargs = optimizer.optimizer_kwargs or {}
        losses = [
            args.LossArgs(cls="round_reg", kwargs={"max_count": iterations}),
            args.LossArgs(cls="mse", kwargs={"reduction": "none", "dim": 1}),
        ]
        training = args.TrainingArgs(
            optimizers_args=[optimizer], batch_size=batch, iters=iterations, losses_args=losses,
            use_best_model=False, use_amp=False,
        )  # fmt: skip
        rounding = args.HandlerSpec(name="learned_round", config=LearnedRoundArgs("hard_sigmoid"))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            LearnedRoundTrainer(args.TrainerConfig(training, [rounding])).train(
                model,
                lambda model, x: model(x),
                lambda block, x: block(x),
                [layer.inputs],  # type: ignore[arg-type]
                CacheVision(),
                lambda model: get_blocks(model, is_layer),
            )
        return _brevitas_weight(model[0], layer)

    return run


def _brevitas_layer(layer: Layer) -> Any:
    """The layer with brevitas's symmetric quantizer of 4 bits, narrow range, on our scales."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat

    module, options = layer.module, {}
    options["weight_quant"] = Int8WeightPerChannelFloat
    options |= {"weight_bit_width": 4, "weight_scaling_impl_type": "parameter_from_stats"}
    if isinstance(module, nn.Linear):
        quant = qnn.QuantLinear(module.in_features, module.out_features, bias=True, **options)
    else:
        quant = qnn.QuantConv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, bias=True, **options,
        )  # fmt: skip
    quant.eval()
    quant.weight.data = module.weight.detach().clone()
    quant.bias.data = torch.zeros_like(quant.bias) if module.bias is None else module.bias.detach().clone()
    with torch.no_grad():
        quant(layer.inputs[:2])
    scale = dict(quant.named_parameters())["weight_quant.tensor_quant.scaling_impl.value"]
    scale.data = (layer.scales * 7).reshape(scale.shape)
    return quant


def _brevitas_weight(quant: Any, layer: Layer) -> Tensor:
    weight = quant.quant_weight()
    torch.testing.assert_close(weight.scale.reshape(-1), layer.scales.reshape(-1), rtol=1e-5, atol=0)
    return weight.value


def neural_compressor_gptq(layer: Layer) -> Tensor:
    """Intel's copy of the authors' code. A convolution is given as the linear layer over its patches that it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    module, inputs = layer.module, layer.inputs
    if isinstance(module, nn.Conv2d):
        patches = nn.functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
        inputs = patches.mT.reshape(-1, patches.shape[1])
    rows = module.weight.detach().flatten(1).clone()
    solver = GPTQ(nn.Linear(rows.shape[1], rows.shape[0]), rows)
    for batch in inputs.split(4096):
        solver.add_batch(batch, torch.empty(0))
    solver.quantizer.configure({"bits": 4, "sym": True, "dtype": "int", "double_quant_sym": True, "perchannel": True})
    solver.quantizer.scale = layer.scales.reshape(-1, 1)
    solver.quantizer.zero, solver.quantizer.maxq = torch.full_like(solver.quantizer.scale, 7.0), 14
    return solver.fasterquant(rows, percdamp=0.01, act_order=True)[3]


def aimet_adaround(iterations: int) -> Callable[[Layer], Tensor]:
    """Qualcomm's, by the authors of AdaRound: their optimizer on a one-layer model."""

    def run(layer: Layer) -> Tensor:
        with _stand_in_for_torchvision():
            from aimet_torch._base.adaround.adaround_loss import AdaroundHyperParameters
            from aimet_torch._base.adaround.adaround_optimizer import AdaroundOptimizer
            from aimet_torch.adaround.adaround_weight import AdaroundWrapper
            from aimet_torch.nn import QuantizationMixin
            from aimet_torch.quantization.affine import QuantizeDequantize

        model = nn.Sequential(copy.deepcopy(layer.module)).eval()
        quantized = QuantizationMixin.from_module(copy.deepcopy(layer.module))
        quantizer = QuantizeDequantize(shape=tuple(layer.scales.shape), qmin=-8, qmax=7, symmetric=True)
        quantizer.set_range(-8 * layer.scales, 7 * layer.scales)
        quantized.param_quantizers["weight"] = quantizer
        wrapper = AdaroundWrapper(quantized)
        wrapper.clip_min = -7  # code -8 is not on the grid of the others
        torch.testing.assert_close(wrapper.broadcasted_delta, layer.scales.expand_as(layer.module.weight))
        assert not bool(wrapper.broadcasted_offset.any())
        data = [((batch,), {}) for batch in layer.inputs.split(BATCH) if len(batch) == BATCH]
        # The package's defaults; the number of iterations is its default for fewer than 8 bits.
        parameters = AdaroundHyperParameters(iterations, 0.01, (20, 2), 0.2)
        AdaroundOptimizer.adaround_module(
            model[0],
            wrapper,
            model,
            nn.Sequential(wrapper),
            None,
            data,
            lambda m, *args, **kw: m(*args, **kw),
            parameters,
        )
        return wrapper.apply_adaround(layer.module.weight)

    return run


class _Empty(types.ModuleType):
    """A module in which every capitalized name is an empty class and every other name such a module."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else _Empty(name)


class _TorchvisionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        ours = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """aimet-torch imports torchvision for detection operators and data sets that AdaRound does not use."""
    import transformers.modeling_utils  # noqa: F401  looks for torchvision too, and must not find this one

    finder = _TorchvisionFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


PUBLIC = (
    Public("GPTQ", "brevitas", "activation order", brevitas_gptq),
    Public(
        "GPTQ", "neural-compressor-pt", "activation order", neural_compressor_gptq, lambda layer: not layer.depthwise
    ),
    Public("AdaRound", "brevitas", "defaults: 1000 steps, batch 1", brevitas_adaround(1000, 1e-3, 1)),
    Public("AdaRound", "aimet-torch", "defaults: 15000 steps, batch 32", aimet_adaround(15_000)),
)
