"""A run directory: one search, one writer, nothing lost."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from haq.errors import InputError
from haq.rundir import RUN_FILE, RunRequest, open_run, read_run

ASKED = RunRequest(
    spec={"scope": {"space": "chain"}, "search": {"trials": 5, "seed": 0}},
    search={"sampler": "tpe", "seed": 0, "trials": 5},
    provenance={"model": "chain", "weights_hash": "w0"},
    targets={"plain": {"batch": 1, "confidence": "facts only", "title": "Plain"}},
    space={"groups": {"layer1.0": {"layers": ["layer1.0"], "bits": [4, 8]}}},
)


def test_run_json_says_what_was_asked_with_which_versions_on_which_machine(tmp_path):
    with open_run(tmp_path / "run", ASKED):
        pass
    info = read_run(tmp_path / "run").info
    assert info["spec"] == ASKED.spec
    assert info["provenance"]["weights_hash"] == "w0"
    assert {"python", "torch", "optuna", "numpy"} <= info["versions"].keys()
    assert info["machine"]["cpus"] >= 1


def test_the_same_search_is_gone_on_with_and_its_budget_may_grow(tmp_path):
    more = replace(ASKED, spec={"scope": {"space": "chain"}, "search": {"trials": 50, "seed": 0, "timeout_s": 9.0}})
    with open_run(tmp_path, ASKED) as opened:
        opened.writer.append("note", {})
    with open_run(tmp_path, more) as opened:
        assert opened.run.info["spec"]["search"]["trials"] == 50
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"search": {"sampler": "gp", "seed": 0}}, "search.sampler is 'tpe' there"),
        ({"spec": {"scope": {"space": "other"}}}, "spec.scope.space is 'chain' there"),
        ({"spec": {"scope": {"space": "chain"}, "latency": {"max_ms": 2}}}, "spec.latency.max_ms is 'not set' there"),
        ({"provenance": {"model": "chain"}}, "provenance.weights_hash is 'w0' there"),
        (
            {"space": {"groups": {"layer1.0": {"layers": ["layer1.0"], "bits": [8]}}}},
            "space.groups.layer1.0.bits is [4, 8] there",
        ),
    ],
)
def test_another_search_is_refused_by_its_first_differing_key(tmp_path, change, text):
    with open_run(tmp_path, ASKED):
        pass
    with pytest.raises(InputError, match="different search") as error, open_run(tmp_path, replace(ASKED, **change)):
        pass
    assert text in str(error.value)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"), open_run(tmp_path, ASKED):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_out_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the run directory"), open_run(tmp_path / "file" / "run", ASKED):
        pass
    with pytest.raises(InputError, match="cannot write the run directory"), open_run(tmp_path / "file", ASKED):
        pass


def test_a_second_writer_is_refused_while_the_first_one_writes(tmp_path):
    with open_run(tmp_path, ASKED):
        script = (
            "from pathlib import Path\nfrom haq.rundir import *\nfrom haq.errors import InputError\n"
            "r = RunRequest({}, {}, {}, {}, {})\n"
            f"try:\n  with open_run(Path({str(tmp_path)!r}), r): pass\n"
            "except InputError as e: print(e)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "another process is writing to this run directory" in done.stdout
    with open_run(tmp_path, ASKED):
        pass  # released


def test_what_is_no_run_is_refused_when_read(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        read_run(tmp_path)
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(InputError, match="damaged or of another version"):
        read_run(tmp_path)
    (tmp_path / RUN_FILE).write_text(json.dumps({"schema": "haq.run/v9"}))
    with pytest.raises(InputError, match="expected haq"):
        read_run(tmp_path)


def test_reading_a_run_loads_neither_torch_nor_optuna():
    script = (
        "import sys, haq.rundir, haq.outputs; print([m for m in ('torch', 'optuna', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
