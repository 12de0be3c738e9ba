"""The formats that a config can be exported to; each one's packages are loaded when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from haq.errors import InputError, MissingExtra
from haq.export.report import Exporter, ExportReport
from haq.nn.exportable import Exportable


@dataclass(frozen=True)
class Lazy:
    """The exporter called `export` in a module. extra: which extra holds the packages that the module imports.

    options: the names of the options that it knows.
    """

    module: str
    extra: str | None = None
    options: tuple[str, ...] = ()

    def __call__(self, what: Exportable, where: Path, options: Mapping[str, str]) -> ExportReport:
        """Write the artifact; raises InputError as the exporter does, MissingExtra where its packages are absent."""
        if unknown := [name for name in options if name not in self.options]:
            raise InputError(
                "the format has no such option", where=self.module.rpartition(".")[2], got=unknown[0],
                expected=", ".join(self.options) or "no options",
            )  # fmt: skip
        try:
            exporter: Exporter = import_module(self.module).export
        except ModuleNotFoundError as error:
            if self.extra is None or str(error.name).startswith("haq"):
                raise
            raise MissingExtra(str(error.name), self.extra) from error
        return exporter(what, where, options)


EXPORTERS: Mapping[str, Exporter] = {
    "json": Lazy("haq.export.canonical"),
    "modelopt": Lazy("haq.export.modelopt"),
    "torchao": Lazy("haq.export.torchao", "torchao"),
    "onnx-qdq": Lazy("haq.export.onnx_qdq", extra="onnx", options=("flavour",)),
    "litert": Lazy("haq.export.litert", "litert", ("flavour",)),
    "qwix": Lazy("haq.export.qwix"),
}
"""Format -> exporter, one file per format."""
