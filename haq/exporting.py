"""The verb that exports a config: opens what it names and writes it in a format.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from haq.errors import lookup
from haq.sketch import is_available

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.export.report import ExportReport

UNWATCHED = "no summaries of activations, so `haq check` has nothing to compare with: pip install 'haq[drift]'"


def export(config: Path, format: str, out: Path, given: Mapping[str, str], options: Mapping[str, str]) -> ExportReport:
    """Write the config's network at `out`; the report says what the format could not hold.

    The config in it, or beside it, gets the summaries of activations with which `haq check` and `haq.monitor` compare.

    format: a name in `haq.export.EXPORTERS`. given: `space`, `model`, `weights`, `data`, of a network that came from
    outside haq. options: of the format, such as `flavour`. Raises InputError on anything that does not fit.
    """
    from haq.export import EXPORTERS
    from haq.nn.exportable import load_exportable
    from haq.nn.summaries import activation_summaries

    exporter = lookup(EXPORTERS, format, "format", where="--format")
    what = load_exportable(config, given)
    if not is_available():
        report = exporter(what, out, options)
        return replace(report, notes=(*report.notes, UNWATCHED))
    found = activation_summaries(what)
    config_with = {**what.config, "activations": found} if found else what.config
    return exporter(replace(what, config=config_with), out, options)
