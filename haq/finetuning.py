"""The verb that finetunes a config: opens what it names, trains, and writes what came out.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.spacefile import space_of_config

if TYPE_CHECKING:  # names for annotations only; at run time they would load torch
    from haq.nn.finetune import EpochDone, Started


def finetune(
    config: Path,
    out: Path,
    given: Mapping[str, str],
    options: Mapping[str, Any],
    report: Callable[[Started | EpochDone], None],
) -> dict[str, Any]:
    """Train the quantized network of a config, write the result at `out` and its numbers beside it; returns it.

    given: `space`, `model`, `weights`, `data`, `train_data`. Only a shipped space is loaded because the config names
    it; whatever came from outside must be given again, and hashes are checked. options: of
    `haq.nn.finetune.TuneOptions`.
    Goes on from the checkpoint beside `out`, if there is one. Raises InputError on anything that does not fit.
    """
    from haq.nn.bundle import load_bundle
    from haq.nn.finetune import TuneOptions, check_options
    from haq.nn.train_data import training_batches
    from haq.nn.tune_config import Files, finetune_config, readable_config

    chosen, files = TuneOptions(**options), Files(config, out)
    check_options(chosen)
    raw = readable_config(files)
    space = space_of_config(raw, given.get("space"), where=str(config))
    paths = {key: Path(value) for key, value in given.items()}
    # Cheap failures first: the data to train on are opened before a network is loaded.
    batches = training_batches(space, paths.get("train_data"), paths.get("data"), paths.get("weights"))
    bundle = load_bundle(space, weights=given.get("weights"), data=given.get("data"), model=given.get("model"))
    return finetune_config(files, bundle, batches, chosen, report)
