"""The verb that finetunes a config: opens what it names, trains, and writes what came out.

torch is imported inside, so that importing this module stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.errors import InputError
from haq.resources import shipped_names
from haq.spacefile import FOLDER, load_space

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
    name = given.get("space", raw["model"].get("model"))
    if "space" not in given and name not in shipped_names(FOLDER):
        raise InputError(
            "the config's network came from outside haq", where=str(config), got=name,
            expected="--space (and --model, --weights, --data, --train-data) again",
            way_out="nothing is loaded because a config names it",
        )  # fmt: skip
    space, paths = load_space(name), {key: Path(value) for key, value in given.items()}
    # Cheap failures first: the data to train on are opened before a network is loaded.
    batches = training_batches(space, paths.get("train_data"), paths.get("data"), paths.get("weights"))
    bundle = load_bundle(space, weights=given.get("weights"), data=given.get("data"), model=given.get("model"))
    return finetune_config(files, bundle, batches, chosen, report)
