"""Number formats, one layer's precision, and the assignment of precisions to a whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from haq.errors import InputError, lookup

BIT_WIDTHS = (4, 8, 16, 32)
"""The searched symbols, narrowest first; a target's profile says which Precision each one means there."""

GROUPS = (32, 64, 128)
"""How many consecutive inputs of an output channel may share one weight scale."""


@dataclass(frozen=True)
class Format:
    """A number format. `largest` is its largest finite value (integers: of the signed code).

    group: of a weight such as `int4g64`, how many consecutive inputs of an output channel share one scale; absent, all
    of them do. per_token: of an activation such as `int8t`, each row of which takes its scale from its own largest
    value as the network runs; otherwise one static scale, which calibration found, holds for the tensor.
    """

    name: str
    bits: int
    is_integer: bool
    largest: float
    group: int | None = None
    per_token: bool = False

    @property
    def plain(self) -> Format:
        """The format with the same codes and the coarsest scales, whose arithmetic it shares: `int4` of `int4g64`."""
        return FORMATS[f"int{self.bits}"] if self.group is not None or self.per_token else self

    def __str__(self) -> str:
        return self.name


# Largest finite values: fp16 (2 - 2^-10) 2^15, bf16 (2 - 2^-7) 2^127, fp32 (2 - 2^-23) 2^127
# (IEEE 754 for fp16 and fp32; bf16 keeps the exponent of fp32).
FORMATS: Mapping[str, Format] = {
    "int4": Format("int4", 4, True, 7),
    "int8": Format("int8", 8, True, 127),
    "int16": Format("int16", 16, True, 32767),
    "fp16": Format("fp16", 16, False, 65504.0),
    "bf16": Format("bf16", 16, False, (2 - 2.0**-7) * 2.0**127),
    "fp32": Format("fp32", 32, False, (2 - 2.0**-23) * 2.0**127),
    **{f"int4g{group}": Format(f"int4g{group}", 4, True, 7, group=group) for group in GROUPS},
    "int8t": Format("int8t", 8, True, 127, per_token=True),
}
"""Every format by its name. Only weights have groups and only activations are per token.

Weights of 8 bits have no groups: with a scale per channel they lose next to nothing, and four bytes per 32 codes would
make them an eighth larger.
"""


@dataclass(frozen=True)
class Precision:
    """One layer's choice: weight format / activation format, written `int4/int8`.

    An integer weight beside a float activation is storage only: it is dequantized and the arithmetic runs in the
    activation format. An attention product has no weight; both its operands take the activation format.
    """

    weight: Format
    activation: Format

    @classmethod
    def parse(cls, text: str) -> Precision:
        """`"int4/int8"`, `"int4g64/int8t"` or, for both alike, `"fp16"`; raises InputError on an unknown format, on
        groups of an activation and on a weight per token."""
        return _parsed(text)

    @property
    def compute(self) -> Format:
        """The format in which the target multiplies."""
        return self.activation.plain

    @property
    def plain(self) -> Precision:
        """The same codes with one scale per output channel and one per activation."""
        return Precision(self.weight.plain, self.activation.plain)

    def scaled(self, group: int | None, *, per_token: bool) -> Precision:
        """The same codes with finer scales, where a format has them: int4 weights groups, int8 activations tokens."""
        weight, activation = self.weight.plain, self.activation.plain
        return Precision(
            self.weight if group is None else FORMATS.get(f"{weight}g{group}", self.weight),
            FORMATS.get(f"{activation}t", self.activation) if per_token else self.activation,
        )

    @property
    def is_storage_only(self) -> bool:
        """Whether the weight is stored narrow and computed wide."""
        return self.weight.is_integer and not self.activation.is_integer

    def __str__(self) -> str:
        return self._text

    def __hash__(self) -> int:
        # Precisions are looked up for every layer of every candidate; the fields' hashes are not kept, a text's is.
        return hash(self._text)

    @cached_property
    def _text(self) -> str:
        return f"{self.weight}/{self.activation}"


FP32 = Precision(FORMATS["fp32"], FORMATS["fp32"])
"""What a trained network runs in."""


@lru_cache(maxsize=256)
def _parsed(text: str) -> Precision:
    """Each text once: a profile's rows are read anew for every layer."""
    parts = text.split("/")
    if len(parts) > 2:
        raise InputError("not a precision", got=text, expected="weight/activation, for example int4/int8")
    formats = [lookup(FORMATS, part.strip(), "format") for part in parts]
    weight, activation = formats[0], formats[-1]
    if weight.per_token:
        raise InputError("a weight has no tokens", got=text, expected=f"for example int8/{weight}")
    if activation.group is not None:
        raise InputError("an activation has no groups", got=text, expected=f"for example {activation}/int8")
    return Precision(weight, activation)


@dataclass(frozen=True)
class Assignment(Mapping[str, "int | Precision"]):
    """What every layer takes: a bit-width (as searched) or a Precision (as executed); immutable, hashable.

    entries: (layer name, choice) pairs in the workload's order; each layer once.
    """

    entries: tuple[tuple[str, int | Precision], ...]

    def __post_init__(self) -> None:
        assert len(self._choices) == len(self.entries), "a layer is assigned twice"

    @classmethod
    def of(cls, choices: Mapping[str, int | Precision]) -> Assignment:
        """An assignment with the mapping's entries, in its order."""
        return cls(tuple(choices.items()))

    @classmethod
    def uniform(cls, layers: Iterable[str], choice: int | Precision) -> Assignment:
        """Every layer takes the same choice."""
        return cls(tuple((layer, choice) for layer in layers))

    @cached_property
    def _choices(self) -> dict[str, int | Precision]:
        return dict(self.entries)

    def __getitem__(self, layer: str) -> int | Precision:
        return self._choices[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self.entries)

    def __hash__(self) -> int:
        return hash(self.entries)

    def precision(self, layer: str) -> Precision:
        """The layer's executed Precision; the assignment must have been legalized."""
        choice = self._choices[layer]
        assert isinstance(choice, Precision), f"{layer} is not legalized: {choice}"
        return choice

    def to_json(self) -> dict[str, int | str]:
        """Layer -> 4, 8, 16, 32 or "int4/int8"."""
        return {layer: c if isinstance(c, int) else str(c) for layer, c in self.entries}

    @classmethod
    def from_json(cls, raw: Mapping[str, int | str]) -> Assignment:
        """The inverse of `to_json`."""
        return cls.of({layer: c if isinstance(c, int) else Precision.parse(c) for layer, c in raw.items()})

    @cached_property
    def signature(self) -> str:
        """16 hex digits that name the content whatever the order; accuracy is keyed by an executed signature."""
        text = "\n".join(f"{layer}={choice}" for layer, choice in sorted(self.to_json().items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
