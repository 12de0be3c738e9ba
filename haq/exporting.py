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
from haq.sketch import is_available

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.export.report import ExportReport

UNWATCHED = "no summaries of activations, so `haq check` has nothing to compare with: pip install 'haq[drift]'"


def export(
    config: Path, format: str, out: Path, given: Mapping[str, str], options: Mapping[str, str], *, ladder: bool = True
) -> ExportReport:
    """Write the config's network at `out`; the report says what the format could not hold.

    The config in it, or beside it, gets the summaries of activations with which `haq check` and `haq.monitor` compare.

    format: a name in `haq.export.EXPORTERS`. given: `space`, `model`, `weights`, `data`, of a network that came from
    outside haq. options: of the format, such as `flavour`. ladder: whether its config gets a recovery ladder, the steps
    of `haq recover --step`, each measured. Raises InputError on anything that does not fit.
    """
    from haq.export import EXPORTERS
    from haq.nn.exportable import load_exportable
    from haq.nn.summaries import activation_summaries

    exporter = lookup(EXPORTERS, format, "format", where="--format")
    what, notes = load_exportable(config, given), []
    if ladder:
        what, note = with_ladder(what, config, own_numbers=format == "json" or "parameters" in what.config)
        notes += [note] if note else []
    if is_available():
        found = activation_summaries(what)
        what = replace(what, config={**what.config, "activations": found}) if found else what
    else:
        notes.append(UNWATCHED)
    report = exporter(what, out, options)
    return replace(report, notes=(*report.notes, *notes))
