"""Turns any eval-mode module into a Workload by watching one forward pass, op by op, on real or meta tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from haq.errors import InputError
from haq.nn.record import Record, Recorder
from haq.nn.sites import running
from haq.workload import Workload

Example = tuple[Tensor, ...] | dict[str, Tensor]


def trace(model: nn.Module, example: Example, *, name: str) -> Workload:
    """What `model` runs for one sample.

    example: positional or keyword tensors whose first axis is the batch, cut to one sample; on the model's device
    (meta too). Other values (a flag, say) are passed on as they are. The model runs in eval mode here, and is as it was
    afterwards: parameters, buffers, training flags and hooks, as are the example and the random state.
    Raises InputError when the model cannot run on the example or does nothing that depends on it.
    """
    return trace_record(model, example, name=name).workload


def trace_record(model: nn.Module, example: Example, *, name: str) -> Record:
    """The workload, with the modules that its nodes ran in."""
    sample = _one_sample(example, name)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            "TorchScript hides its ops", where=name, got=type(model).__name__, expected="a plain nn.Module",
            way_out="give the module that was scripted",
        )  # fmt: skip
    with _one_quiet_pass(model, sample), running(model) as sites:
        recorder = Recorder(model, sites, sample)
        try:
            with recorder:
                outputs = model(**sample) if isinstance(example, dict) else model(*sample.values())
        except InputError:
            raise
        except Exception as error:
            shapes = {k: tuple(v.shape) for k, v in sample.items() if isinstance(v, Tensor)}
            raise InputError(
                "the model cannot run on the example input", where=name, got=f"{type(error).__name__}: {error}",
                way_out=f"give an example that the model takes; this one was {shapes}",
            ) from error  # fmt: skip
        finally:
            recorder.restore()
    return recorder.record(name, outputs)


def _one_sample(example: object, where: str) -> dict[str, object]:
    """The inputs by name (`input_0`, ... for positional ones), a copy each, with a batch of one."""
    if isinstance(example, dict):
        named = {str(key): value for key, value in example.items()}
    elif isinstance(example, tuple | list):
        named = {f"input_{i}": value for i, value in enumerate(example)}
    else:
        named = {}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    empty = [key for key, value in tensors.items() if value.dim() and not len(value)]
    if not tensors or empty:
        raise InputError(
            f"the example input {empty[0]} holds no sample" if empty else "the example input holds no tensor",
            where=where, got=tuple(tensors[empty[0]].shape) if empty else type(example).__name__,
            expected="a tuple or a dict of tensors with the batch as first axis",
            way_out="pass (x,) for a model that takes one tensor x",
        )  # fmt: skip
    cut = {key: (value[:1] if value.dim() else value).detach().clone() for key, value in tensors.items()}
    return {key: cut.get(key, value) for key, value in named.items()}


@contextlib.contextmanager
def _one_quiet_pass(model: nn.Module, sample: dict[str, object]) -> Iterator[None]:
    """Eval mode, no gradients, attention as matrix products; all as before afterwards."""
    training = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    devices = {t.device.index or 0 for t in sample.values() if isinstance(t, Tensor) and t.is_cuda}
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in training.items():
            module.training = mode
        for module, kept in buffers.items():
            module._buffers.clear()
            module._buffers.update(kept)
