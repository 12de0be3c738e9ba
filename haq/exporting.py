"""The verb that exports a config: opens what it names and writes it in a format.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from haq.errors import lookup
from haq.recovering import with_ladder

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.export.report import ExportReport


def export(
    config: Path, format: str, out: Path, given: Mapping[str, str], options: Mapping[str, str], *, ladder: bool = True
) -> ExportReport:
    """Write the config's network at `out`; the report says what the format could not hold.

    format: a name in `haq.export.EXPORTERS`. given: `space`, `model`, `weights`, `data`, of a network that came from
    outside haq. options: of the format, such as `flavour`. ladder: whether its config gets a recovery ladder, the steps
    of `haq recover --step`, each measured. Raises InputError on anything that does not fit.
    """
    from haq.export import EXPORTERS
    from haq.nn.exportable import load_exportable

    exporter = lookup(EXPORTERS, format, "format", where="--format")
    what, note = load_exportable(config, given), ""
    if ladder:
        what, note = with_ladder(what, config, own_numbers=format == "json" or "parameters" in what.config)
    report = exporter(what, out, options)
    return replace(report, notes=(*report.notes, note)) if note else report
