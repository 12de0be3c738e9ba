"""Finds layers whose channels can be scaled against each other without changing what the network computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from haq.nn.record import Record
from haq.workload import LayerSpec

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ReLU6)
"""Modules with f(s x) = s f(x) for s > 0, channel by channel; ReLU6 if its 6 is scaled too."""


@dataclass(frozen=True)
class Neighbours:
    """A layer, the modules that its output passes, and the layers that read it afterwards; module names all.

    Channel c of the producer is input channel c of every consumer, and nothing else reads it.
    """

    producer: str
    between: tuple[str, ...]
    consumers: tuple[str, ...]


def neighbours(model: nn.Module, record: Record) -> Iterator[Neighbours]:
    """Every convolution or linear layer of the traced model whose readers all are such layers, in execution order."""
    workload, names = record.workload, record.modules
    modules = dict(model.named_modules())
    runs = Counter(names[node.name] for node in workload.nodes)
    keys = Counter(layer.weight.key for layer in workload.layers if layer.weight)
    layers = {layer.name: layer for layer in workload.layers}
    ends = frozenset(workload.outputs)

    def is_own(layer: LayerSpec) -> bool:
        module = modules.get(layer.name)
        known = isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and names[layer.name] == layer.name
        return known and layer.weight is not None and runs[layer.name] == keys[layer.weight.key] == 1

    for layer in workload.layers:
        if not is_own(layer) or layer.name in ends:
            continue
        between: list[str] = []
        readers: list[LayerSpec] = []
        pending = list(workload.consumers[layer.name])
        while pending:
            node = pending.pop(0)
            if node in layers:
                if not is_own(layers[node]) or not _reads_channels(modules[layer.name], modules[node]):
                    break
                readers.append(layers[node])
            elif node not in ends and isinstance(modules.get(names[node]), _HOMOGENEOUS) and runs[names[node]] == 1:
                between.append(names[node])
                pending += workload.consumers[node]
            else:
                break
        else:
            if readers:
                yield Neighbours(layer.name, tuple(between), tuple(reader.name for reader in readers))


def _reads_channels(producer: nn.Module, consumer: nn.Module) -> bool:
    """Whether the consumer takes as many channels as the producer gives, each as a channel of its own."""
    given = producer.out_features if isinstance(producer, nn.Linear) else producer.out_channels
    taken = consumer.in_features if isinstance(consumer, nn.Linear) else consumer.in_channels
    return bool(given == taken)
