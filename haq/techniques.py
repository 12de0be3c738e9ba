"""The post-training quantization techniques by name, and which of them combine into a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from haq.errors import InputError, nearest


@dataclass(frozen=True)
class Technique:
    """One technique. family: of `exclusive` families a stack takes at most one member. title: what it does."""

    family: str
    title: str


TECHNIQUES: Mapping[str, Technique] = {
    "bn_fold": Technique("structure", "fold batch norm into the layer before it; always done"),
    "cle": Technique("structure", "cross-layer equalization of the weights of neighbours (Nagel et al. 2019)"),
    "smoothquant": Technique("structure", "move outliers of linear layers' inputs into weights (Xiao et al. 2023)"),
    "minmax": Technique("ranges", "weight ranges up to the largest magnitude"),
    "mse": Technique("ranges", "weight ranges with the least squared error of the weights"),
    "output_mse": Technique("ranges", "weight ranges with the least squared error of the layer's output"),
    "hqq": Technique("ranges", "weight ranges by half-quadratic splitting, without data (Badri and Shaji 2023)"),
    "group_32": Technique("groups", "one weight scale for every 32 inputs, where the target executes it"),
    "group_64": Technique("groups", "one weight scale for every 64 inputs, where the target executes it"),
    "group_128": Technique("groups", "one weight scale for every 128 inputs, where the target executes it"),
    "gptq": Technique("rounding", "round 4-bit weights one input at a time, the others make up (Frantar et al. 2022)"),
    "quantease": Technique("rounding", "set 4-bit weights one by one until none can be improved (Behdin et al. 2023)"),
    "adaround": Technique("rounding", "learn which way each 4-bit weight is rounded (Nagel et al. 2020); slow"),
    "bn_reestimation": Technique("output", "restore every output channel's mean and deviation (Peters et al. 2023)"),
    "bias_correction": Technique("output", "restore every output channel's mean in its bias (Nagel et al. 2019)"),
    "per_token": Technique("tokens", "activation scales of linear layers at run time, where the target executes it"),
}  # fmt: skip
"""In the order in which they are applied, whatever the order in which they are named."""

EXCLUSIVE = ("ranges", "groups", "rounding", "output")
"""Families of which one technique excludes the others."""

STRUCTURE = frozenset({"cle", "smoothquant"})
"""Techniques that change the network before it is calibrated, and nothing of what it computes."""

DEFAULT_RANGES = "minmax"
DEFAULT_STACK = ("bn_fold", "output_mse", "gptq", "bn_reestimation")
"""The best measured: experiments/accuracy."""


@dataclass(frozen=True)
class Stack:
    """Techniques that go together. names: as in TECHNIQUES, in the order in which they are applied."""

    names: tuple[str, ...] = DEFAULT_STACK

    @classmethod
    def of(cls, names: Sequence[str]) -> Stack:
        """The stack of these techniques; raises InputError on an unknown one and on two that exclude each other."""
        for name in names:
            if name not in TECHNIQUES:
                raise InputError(
                    "unknown technique", where="accuracy.ptq", got=name, expected=f"some of {', '.join(TECHNIQUES)}",
                    way_out=nearest(name, TECHNIQUES),
                )  # fmt: skip
        for family in EXCLUSIVE:
            members = [name for name in dict.fromkeys(names) if TECHNIQUES[name].family == family]
            if len(members) > 1:
                raise InputError(
                    "techniques that exclude each other", where="accuracy.ptq", got=" and ".join(members),
                    expected=f"one of {', '.join(n for n, t in TECHNIQUES.items() if t.family == family)}",
                )  # fmt: skip
        return cls(tuple(name for name in TECHNIQUES if name in names))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def without_structure(self) -> Stack:
        """The stack for a network that stays as it is."""
        return Stack(tuple(name for name in self.names if name not in STRUCTURE))

    @property
    def ranges(self) -> str:
        """How weight ranges are chosen."""
        return self._member("ranges") or DEFAULT_RANGES

    @property
    def rounding(self) -> str | None:
        """How 4-bit weights are rounded within their ranges; None: to nearest."""
        return self._member("rounding")

    @property
    def group(self) -> int | None:
        """Inputs that share a weight scale; None: all inputs of an output channel."""
        name = self._member("groups")
        return None if name is None else int(name.removeprefix("group_"))

    @property
    def output(self) -> str | None:
        """How a layer's output is corrected afterwards."""
        return self._member("output")

    def _member(self, family: str) -> str | None:
        return next((name for name in self.names if TECHNIQUES[name].family == family), None)

    def __str__(self) -> str:
        return " + ".join(self.names) or "round to nearest"


DEFAULT = Stack()


def parse_stack(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the order of application, for pydantic; raises ValueError where they are no stack."""
    try:
        return Stack.of(names).names
    except InputError as error:
        raise ValueError(str(error)) from None
