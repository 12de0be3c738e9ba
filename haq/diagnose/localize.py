"""Group testing: which layers the loss comes from, by raising blocks, then halves of them, then single layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from haq.diagnose.effects import FLOOR_NATS, is_measured, regained, size
from haq.diagnose.finding import Bench, Change, Effect

BLOCKS = 8
"""Parts that the network is cut into at first, in the order in which its layers run."""


@dataclass(frozen=True)
class Shares:
    """layers: single layers that were tried -> what they regain alone. measured: how many networks were measured."""

    layers: Mapping[str, Effect] = field(default_factory=dict)
    measured: int = 0

    def of(self, whole: float) -> dict[str, float]:
        """Layer -> its share of a loss, in the unit that effects are ordered by."""
        return {layer: size(effect) / whole for layer, effect in self.layers.items()} if whole > 0 else {}


def localize(
    bench: Bench,
    base: Change,
    layers: Sequence[str],
    *,
    least: float = FLOOR_NATS,
    most: int = 48,
    tell: Callable[[str, int], None] = lambda what, left: None,
) -> Shares:
    """The layers whose raising to FP32 regains a measurable part of what is lost with the change `base`.

    A block that regains nothing is not looked into, so that k bad layers among n take about 2 k log2(n / k)
    measurements (Dorfman 1943, with halves in place of single tests: Hwang 1972). least: what counts, in nats; most:
    measurements. The most promising part is cut first, so that what is left out at the end matters least. tell:
    hears after every measurement how many are left, as far as it is known.
    """
    before, found, spent = bench.measure(base), {}, 0
    size_of_block = max(1, -(-len(layers) // BLOCKS))
    waiting = [tuple(layers[i : i + size_of_block]) for i in range(0, len(layers), size_of_block)]
    ranked: list[tuple[float, tuple[str, ...]]] = []
    while (waiting or ranked) and spent < most:
        if waiting:
            part = waiting.pop(0)
            raised = tuple((layer, bench.widest(layer)) for layer in part)
            effect = regained(before, bench.measure(base | Change(raised=raised)))
            spent += 1
            if len(part) == 1:
                found[part[0]] = effect
            elif is_measured(effect, least):
                ranked.append((size(effect), part))
            tell("group testing", min(len(waiting) + 2 * len(ranked), most - spent))
            continue
        ranked.sort(key=lambda entry: entry[0])
        _, part = ranked.pop()
        waiting = [part[: len(part) // 2], part[len(part) // 2 :]]
    return Shares(found, spent)
