"""A real network whose search races, from Python and from the command line."""

import json

import pytest
import torch
from torch import nn

import haq
from haq.cli.app import main
from haq.front import front
from haq.history import summarize
from haq.nn.task import Batch, ClassificationTask
from haq.rundir import HISTORY_FILE, read_run


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)]
        return nn.Sequential(*layers).eval()


def task():
    x = torch.randn(640, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = network()(x).argmax(dim=1)
    wrong = torch.rand(640, generator=torch.Generator().manual_seed(2)) < 0.1
    labels = torch.where(wrong, (labels + 1) % 4, labels)
    batches = tuple(Batch((x[i : i + 64],), labels[i : i + 64]) for i in range(0, 640, 64))
    return ClassificationTask({"search": batches, "validation": batches[:2]}, ((x[:64],),), "points")


def search_in(out, progress=None, **keys):
    spec = {"search": {"trials": 20, "storage": "none", **keys}}
    own = task()
    return haq.search(
        network(), calibration=own.calibration(), evaluate=own, target="reference", spec=spec, out=out,
        progress=progress,
    )  # fmt: skip


def untimed(path):
    lines = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def test_a_search_races_for_half_the_samples_and_goes_on_as_it_began(tmp_path, capsys):
    def stop_after(count):
        def progress(event):
            if getattr(event, "done", 0) >= count:
                raise KeyboardInterrupt

        return progress

    whole = search_in(tmp_path / "whole")
    summary = summarize(whole.history)
    assert summary.stopped_early >= 4
    assert summary.mean_share < 0.6
    members = front(whole.history.candidates, "reference")
    assert all(p.result.measurement.samples == 640 for p in members)
    partial = [r.measurement for c in whole.history.candidates for r in c.results if r.measurement.is_partial]
    assert all(m.quality.value("kl") is not None for m in partial)
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "broken", stop_after(8))
    search_in(tmp_path / "broken")
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    assert main(["front", str(tmp_path / "whole")]) == 0
    assert main(["report", str(tmp_path / "whole")]) == 0
    assert "stopped early" in capsys.readouterr().out


def test_a_run_without_racing_measures_everything_and_is_another_search(tmp_path):
    full = search_in(tmp_path / "run", racing=False)
    assert (summarize(full.history).stopped_early, summarize(full.history).mean_share) == (0, 1.0)
    assert "racing" not in read_run(tmp_path / "run").info["spec"]["search"]
    with pytest.raises(haq.errors.InputError, match=r"spec\.search\.racing is 'not set' there; got True"):
        search_in(tmp_path / "run")
