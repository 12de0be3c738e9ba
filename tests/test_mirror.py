"""The Optuna storage beside the history: complete, rebuilt, never mixed."""

import json
import math
from dataclasses import replace

import optuna
import pytest
import sqlalchemy.exc
from optuna.distributions import FloatDistribution, IntDistribution
from search_fakes import Accuracy, problem, target, workload

from haq.constraints import Constraints
from haq.engine.bulk import SCHEMA, add_trials, takes_bulk
from haq.engine.events import Notice
from haq.engine.loop import run_search
from haq.engine.problem import SearchOptions
from haq.errors import InputError
from haq.rundir import read_run

OPTIONS = SearchOptions(trials=6)


def trials(url, name):
    storage = optuna.storages.RDBStorage(url)
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def asked(limits=Constraints(), measure=None):  # noqa: B008
    net = workload()
    return problem(net, (target(net, limits), target(net, limits, name="other", no_int4=("d",))), measure)


def storage_of(path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    for name in ("own", "bulk"):
        optuna.create_study(study_name=name, storage=storage, directions=["minimize"] * 2)
    return storage


def described(trial):
    return (
        trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.user_attrs,
        trial.system_attrs, trial.constraints, trial.datetime_start, trial.datetime_complete,
    )  # fmt: skip


def test_what_is_written_in_bulk_reads_as_what_optuna_writes(tmp_path):
    storage = storage_of(tmp_path / "a.db")
    kinds = {"bits/a": IntDistribution(0, 3), "bits/b": IntDistribution(0, 1), "x": FloatDistribution(0, 1)}
    made = [
        optuna.trial.create_trial(
            values=[0.1 + 0.2, -float(i)], params={"bits/a": i, "bits/b": 1, "x": i / 3}, distributions=kinds,
            constraints={"max_size_bytes": -0.5}, user_attrs={"violations": ["a, \"b\""], "measured": i > 0},
        )
        for i in range(3)
    ]  # fmt: skip
    assert takes_bulk(storage)
    studies = {name: optuna.load_study(study_name=name, storage=storage) for name in ("own", "bulk")}
    for trial in made:
        studies["own"].add_trial(trial)
    key = storage.get_study_id_from_name("bulk")
    add_trials(storage, {key: (0, made[:1])})
    add_trials(storage, {key: (1, made[1:])})
    own, bulk = (trials(f"sqlite:///{tmp_path}/a.db", name) for name in ("own", "bulk"))
    assert len(bulk) == 3
    assert [described(t) for t in bulk] == [described(t) for t in own]


def test_bulk_writing_is_all_or_nothing(tmp_path):
    storage = storage_of(tmp_path / "a.db")
    made = optuna.trial.create_trial(values=[1.0, 2.0], params={"a": 0}, distributions={"a": IntDistribution(0, 1)})
    storage.engine.connect().exec_driver_sql("DROP TABLE trial_params")
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError):
        add_trials(storage, {storage.get_study_id_from_name("bulk"): (0, [made])})
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 0


def test_tables_of_another_version_are_left_to_optuna(tmp_path, monkeypatch):
    storage = storage_of(tmp_path / "a.db")
    monkeypatch.setattr("haq.engine.bulk.SCHEMA", SCHEMA + 1)
    assert not takes_bulk(storage)
    storage.engine.dispose()
    run = read_run(run_search(asked(), OPTIONS, tmp_path / "run"))
    assert len(trials(f"sqlite:///{run.path}/study.db", "run/plain")) == len(run.history.candidates)


class Looking(Accuracy):
    """Counts the trials in the storage at every measurement on the search split, the baseline's left out."""

    def __init__(self, url, **stop):
        super().__init__(**stop)
        self.url, self.found = url, []

    def __call__(self, executed, split):
        if self.calls and split == "search":
            try:
                self.found.append(len(trials(self.url, "run/plain")))
            except KeyError:  # the study is made after the baseline
                self.found.append(0)
        return super().__call__(executed, split)


@pytest.mark.parametrize("stop_after", [None, 6])
def test_short_measurements_are_written_together_and_at_the_latest_at_the_end(tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("haq.engine.mirror.EVERY_S", math.inf)
    url = f"sqlite:///{tmp_path}/run/study.db"
    measure = Looking(url, stop_after=stop_after)
    if stop_after is None:
        run_search(asked(measure=measure), OPTIONS, tmp_path / "run")
    else:
        with pytest.raises(KeyboardInterrupt):
            run_search(asked(measure=measure), OPTIONS, tmp_path / "run")
    assert set(measure.found) == {0}
    count = len(read_run(tmp_path / "run").history.candidates)
    assert count > 1
    for name in ("plain", "other"):
        assert [t.number for t in trials(url, f"run/{name}")] == list(range(count))


def test_a_measurement_that_takes_longer_is_in_the_storage_before_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.engine.mirror.EVERY_S", 0.0)
    measure = Looking(f"sqlite:///{tmp_path}/run/study.db")
    run_search(asked(measure=measure), OPTIONS, tmp_path / "run")
    candidates = read_run(tmp_path / "run").history.candidates
    first = {}
    for candidate in candidates:
        for result in candidate.results:
            first.setdefault(result.executed.signature, candidate.number)
    asked_for = [signature for signature, split in measure.calls[2:] if split == "search"]
    assert measure.found[-len(asked_for) :] == [first[signature] for signature in asked_for]


def test_a_storage_that_fails_is_given_up_and_the_next_start_catches_up(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.engine.mirror.EVERY_S", math.inf)
    out, events = tmp_path / "run", []

    class Breaking(Accuracy):
        def __call__(self, executed, split):
            if len(self.calls) == 6:
                with optuna.storages.RDBStorage(f"sqlite:///{out}/study.db").engine.begin() as connection:
                    connection.exec_driver_sql("ALTER TABLE trial_values RENAME TO gone")
            return super().__call__(executed, split)

    run_search(asked(measure=Breaking()), OPTIONS, out, events.append)
    assert any(isinstance(e, Notice) and "takes no more trials" in e.text for e in events)
    with optuna.storages.RDBStorage(f"sqlite:///{out}/study.db").engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_values")
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO trial_values")
    run_search(asked(), OPTIONS, out)
    assert len(trials(f"sqlite:///{out}/study.db", "run/plain")) == len(read_run(out).history.candidates)


def test_every_candidate_is_in_every_targets_study_with_its_figures_and_limits(tmp_path):
    run = read_run(run_search(asked(Constraints(max_size_bytes=1500)), OPTIONS, tmp_path / "run"))
    for name in ("plain", "other"):
        held = trials(f"sqlite:///{run.path}/study.db", f"run/{name}")
        assert len(held) == len(run.history.candidates)
        for trial, candidate in zip(held, run.history.candidates, strict=True):
            result = candidate.on(name)
            assert trial.values[0] == result.costs["size_bytes"]
            assert trial.constraints["max_size_bytes"] == pytest.approx(result.costs["size_bytes"] / 1500 - 1)
            assert trial.user_attrs["config"] == result.config_id
            assert trial.user_attrs["measured"] == (result.measurement is not None)


def test_a_storage_that_is_missing_or_behind_is_rebuilt_from_the_history(tmp_path):
    out = run_search(asked(), OPTIONS, tmp_path / "run")
    (out / "study.db").unlink()
    for path in out.glob("study.db-*"):
        path.unlink()
    run_search(asked(), OPTIONS, out)
    count = len(read_run(out).history.candidates)
    assert len(trials(f"sqlite:///{out}/study.db", "run/plain")) == count


def test_a_storage_that_is_ahead_of_the_history_is_rebuilt_from_it(tmp_path):
    out = run_search(asked(), replace(OPTIONS, trials=9), tmp_path / "run")
    history = out / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    candidates = [line for line in lines if json.loads(line)["kind"] == "candidate"]
    history.write_text("".join([lines[0], *candidates[:3]]))
    run_search(asked(), replace(OPTIONS, trials=4), out)
    held = trials(f"sqlite:///{out}/study.db", "run/plain")
    assert [t.user_attrs["candidate"] for t in held] == [c.number for c in read_run(out).history.candidates]


def test_two_searches_never_mix_in_one_storage(tmp_path):
    options = replace(OPTIONS, storage=f"sqlite:///{tmp_path}/shared.db")
    run_search(asked(), options, tmp_path / "one" / "run")
    with pytest.raises(InputError, match="another search under this name"):
        run_search(asked(), replace(options, seed=1), tmp_path / "two" / "run")
    run_search(asked(), replace(options, seed=1), tmp_path / "two" / "other")


@pytest.mark.parametrize("url", ["postgresq://nowhere", "sqlite:////nonexistent/folder/study.db", "no url"])
def test_a_storage_that_cannot_be_opened_is_refused(tmp_path, url):
    with pytest.raises(InputError, match="cannot open the storage"):
        run_search(asked(), replace(OPTIONS, storage=url), tmp_path / "run")
