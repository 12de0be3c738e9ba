"""The Optuna storage beside the history: complete, rebuilt, never mixed."""

import json
from dataclasses import replace

import optuna
import pytest
from search_fakes import problem, target, workload

from haq.constraints import Constraints
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


def asked(limits=Constraints()):  # noqa: B008
    net = workload()
    return problem(net, (target(net, limits), target(net, limits, name="other", no_int4=("d",))))


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
