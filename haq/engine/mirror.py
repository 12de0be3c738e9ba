"""The Optuna storage that dashboards read: a copy of the history, rebuilt when it is missing or behind."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from haq.candidate import Candidate
from haq.engine.bulk import add_trials, takes_bulk
from haq.engine.study import OBJECTIVES, Lesson, distributions, finished_trial
from haq.errors import InputError
from haq.space import SearchSpace

STORAGE_FILE = "study.db"


EVERY_S = 2.0
"""What the storage lags behind, at most and unless one measurement takes longer: short ones do not all wait for it."""


@dataclass
class _Copy:
    """One target's study, how many trials it holds, and those that wait to be written; it changes with each of them."""

    study: optuna.Study
    held: int
    waiting: list[FrozenTrial]


class Mirror:
    """Writes finished candidates into one study per target; without a URL, nowhere. It changes because storages do.

    What is added is written at once when the last time was EVERY_S ago, else together with what is added later, or at
    the end. What a killed process had not written, the next start adds.
    """

    def __init__(self, url: str | None, space: SearchSpace, run: str, identity: str) -> None:
        """Connect. run: its name, under which studies are found; identity: of the search, so that they never mix."""
        self._run, self._identity, self._space = run, identity, space
        self._distributions = distributions(space)
        self._storage = None if url is None else _connect(url)
        self._copies: dict[str, _Copy] = {}
        self._written_s = 0.0

    def open(self, target: str, lessons: Sequence[tuple[Candidate, Lesson]]) -> None:
        """Create or load a target's study and add the candidates that it lacks."""
        if self._storage is None:
            return
        name = f"{self._run}/{target}"
        study = _create(self._storage, name)
        held = study.user_attrs.get("search")
        count = len(study.get_trials(deepcopy=False))
        if held != self._identity and count:
            raise InputError(
                "storage already holds another search under this name",
                where=f"study {name!r}",
                got=self._identity,
                expected=str(held),
                way_out="choose another --storage or another name for --out",
            )
        if count > len(lessons):
            # The history lost records that the copy still has; the history is the truth.
            optuna.delete_study(study_name=name, storage=self._storage)
            study, count = _create(self._storage, name), 0
        study.set_user_attr("search", self._identity)
        study.set_metric_names(list(OBJECTIVES))
        waiting = [self._trial(target, candidate, lesson) for candidate, lesson in lessons[count:]]
        self._copies[target] = _Copy(study, count, waiting)
        self._write(self._storage)

    def add(self, candidate: Candidate, lessons: Mapping[str, Lesson]) -> str:
        """Take one finished candidate; lessons: by target. Returns what went wrong with writing, or nothing.

        A storage that fails is given up and not fatal: the history has the candidate, the next start catches up.
        """
        for target, copy in self._copies.items():
            copy.waiting.append(self._trial(target, candidate, lessons[target]))
        return self.flush() if time.monotonic() - self._written_s >= EVERY_S else ""

    def flush(self) -> str:
        """Write what waits; returns what went wrong, or nothing."""
        try:
            if self._storage is not None:
                self._write(self._storage)
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            self._copies = {}
            return f"the Optuna storage takes no more trials, the search goes on without: {str(error).splitlines()[0]}"
        return ""

    def close(self) -> None:
        """Write what waits, as after an interrupt, and disconnect."""
        if self._storage is not None:
            self.flush()
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _write(self, storage: RDBStorage) -> None:
        copies = [copy for copy in self._copies.values() if copy.waiting]
        if takes_bulk(storage):
            ids = [storage.get_study_id_from_name(copy.study.study_name) for copy in copies]
            add_trials(storage, {i: (copy.held, copy.waiting) for i, copy in zip(ids, copies, strict=True)})
        else:
            for copy in copies:
                for trial in copy.waiting:
                    copy.study.add_trial(trial)
        for copy in copies:
            copy.held, copy.waiting = copy.held + len(copy.waiting), []
        self._written_s = time.monotonic()

    def _trial(self, target: str, candidate: Candidate, lesson: Lesson) -> FrozenTrial:
        result = candidate.on(target)
        attributes: Mapping[str, object] = {
            "candidate": candidate.number,
            "origin": candidate.origin,
            "config": result.config_id,
            "measured": result.measurement is not None,
            "violations": list(result.violations),
        }
        return finished_trial(self._space, self._distributions, lesson, user_attrs=attributes)


def _connect(url: str) -> RDBStorage:
    try:
        storage = RDBStorage(url)
        if url.startswith("sqlite"):
            with storage.engine.connect() as connection:  # a third of the default's time per trial
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        # Optuna looks something up for every parameter of a trial. Unless told otherwise, SQLAlchemy writes before each
        # look-up; all at once, when the trial is complete, takes two thirds of the time.
        storage.remove_session()
        storage.scoped_session.configure(autoflush=False)
    except (ImportError, StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise InputError(
            "cannot open the storage",
            where=f"--storage {url}",
            got=str(error).splitlines()[0],
            expected="an Optuna storage URL, such as sqlite:///study.db",
        ) from None
    return storage


def _create(storage: RDBStorage, name: str) -> optuna.Study:
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(OBJECTIVES)
    return optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)


def storage_url(storage: str, run: Path) -> str | None:
    """The URL that an option means: `sqlite` is a file in the run directory, `none` no storage at all."""
    if storage == "none":
        return None
    return f"sqlite:///{(run / STORAGE_FILE).resolve()}" if storage == "sqlite" else storage
