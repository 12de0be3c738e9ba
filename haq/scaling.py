"""Which finer scales a search asks for beside its bit-widths: groups of a weight's inputs, tokens of an activation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from haq.errors import InputError
from haq.precision import GROUPS, Precision
from haq.workload import LayerSpec

PER_TOKEN = "per_token"
GROUPED = {f"group_{group}": group for group in GROUPS}
TECHNIQUES = (*GROUPED, PER_TOKEN)
"""The names under which a spec asks for finer scales."""


@dataclass(frozen=True)
class Scaling:
    """What every bit-width asks for beyond its codes; what the target cannot execute becomes a fallback.

    group: 4-bit weights of Linear layers and 1x1 convolutions get one scale for so many consecutive inputs of an output
    channel. Where a channel has no more inputs than that, where its inputs are pixels of a wider kernel (nine in a
    depthwise one) and in an embedding, whose row is the channel, one scale per channel is asked for as ever.
    per_token: 8-bit activations that a Linear reads get a scale per row, found as the network runs. Convolutions read
    no rows of tokens, and in attention products the second operand's rows are summed over, where a scale each would not
    factor out: both keep static scales.

    Raises InputError on a group that no format has.
    """

    group: int | None = None
    per_token: bool = False

    def __post_init__(self) -> None:
        if self.group is not None and self.group not in GROUPS:
            expected = f"one of {', '.join(map(str, GROUPS))}"
            raise InputError("no such group of weights", got=self.group, expected=expected)

    @classmethod
    def of(cls, techniques: Iterable[str]) -> Scaling:
        """The scaling that some of TECHNIQUES name; other names are none of its concern.

        Raises InputError where two sizes of groups are named.
        """
        names = frozenset(techniques)
        groups = [group for name, group in GROUPED.items() if name in names]
        if len(groups) > 1:
            got = ", ".join(name for name in GROUPED if name in names)
            raise InputError("a weight has groups of one size", got=got, expected="one of them")
        return cls(groups[0] if groups else None, PER_TOKEN in names)

    def asked(self, layer: LayerSpec, precision: Precision) -> Precision:
        """What a layer is asked for whose bit-width means `precision`."""
        takes_groups = layer.kind == "linear" or layer.is_pointwise
        depth = layer.weight.depth if layer.weight is not None and takes_groups else 0
        group = self.group if self.group is not None and depth > self.group else None
        return precision.scaled(group, per_token=self.per_token and layer.kind == "linear")


PLAIN = Scaling()
"""One scale per output channel of a weight and one static scale per activation."""
