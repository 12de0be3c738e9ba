"""What an export says about what it wrote: per layer what was asked and what the format could hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.nn.exportable import Exportable
from haq.precision import Precision


@dataclass(frozen=True)
class LayerWritten:
    """One line of the loss report. written: None where the format cannot say it: the layer is not in the artifact."""

    layer: str
    asked: Precision
    written: Precision | None
    note: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether the artifact's layer is another one than was asked for, or needs an explanation."""
        return self.written != self.asked or bool(self.note)

    def to_json(self) -> dict[str, str | None]:
        written = None if self.written is None else str(self.written)
        return {"layer": self.layer, "asked": str(self.asked), "written": written, "note": self.note}


@dataclass(frozen=True)
class ExportReport:
    """What was written. files: the artifact first. notes: what holds for the artifact as a whole."""

    format: str
    files: tuple[Path, ...]
    layers: tuple[LayerWritten, ...]
    notes: tuple[str, ...] = ()

    @property
    def losses(self) -> tuple[LayerWritten, ...]:
        """The layers that are not, or not quite, as asked."""
        return tuple(layer for layer in self.layers if layer.is_loss)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "files": [str(file) for file in self.files],
            "layers": [layer.to_json() for layer in self.layers],
            "notes": list(self.notes),
        }


Exporter = Callable[[Exportable, Path, Mapping[str, str]], ExportReport]
"""(what, where, options such as `flavour`) -> report. Raises InputError on an option or a path that does not fit."""
