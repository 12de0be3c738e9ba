"""The committed profiles are what `haq calibrate` writes, and hold what was promised of networks it did not see."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from haq.cli import main
from haq.errors import InputError
from haq.fitting import calibrate
from haq.hardware.measurements import read_measurements
from haq.hardware.profile import load_profile
from haq.profiletext import calibrated_text
from haq.resources import shipped

PUBLISHED = Path(__file__).parents[1] / "experiments" / "cost_model" / "published.csv"
CALIBRATED = ("a100", "mobile", "mobile-cpu", "t4", "tpu-v3")


@pytest.fixture(scope="module")
def calibrations():
    pytest.importorskip("transformers")
    return {name: calibrate(name, PUBLISHED) for name in CALIBRATED}


def unseen(found, precision):
    ids = {row.id for row in read_measurements(PUBLISHED) if row.precision == precision}
    return np.abs([error for key, error in found.unseen.items() if key in ids])


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_committed_profile_is_derived_again_from_the_published_rows(calibrations, name: str) -> None:
    committed = (shipped("hardware_profiles") / f"{name}.toml").read_text(encoding="utf-8")
    assert calibrated_text(calibrations[name]) == committed


def test_every_profile_with_fits_is_in_that_list() -> None:
    files = shipped("hardware_profiles").glob("*.toml")
    assert sorted(p.stem for p in files if "[[fits]]" in p.read_text()) == sorted(CALIBRATED)


def test_on_the_a100_each_family_is_predicted_from_the_other_within_25_percent(calibrations) -> None:
    errors = np.abs(list(calibrations["a100"].unseen.values()))
    assert len(errors) == 55
    assert errors.mean() <= 0.25


@pytest.mark.parametrize(("precision", "rows", "bound"), [("16", 12, 0.20), ("8", 7, 0.30)])
def test_on_the_snapdragon_each_network_is_predicted_without_its_rows(calibrations, precision, rows, bound) -> None:
    errors = unseen(calibrations["mobile"], precision)
    assert len(errors) == rows
    assert errors.mean() <= bound


def test_on_the_t4_the_precisions_come_in_the_published_order_and_within_20_percent(calibrations) -> None:
    (result,) = calibrations["t4"].results
    assert [row.id for row in result.observations] == ["L1427", "L1428", "L1429", "L1430"]  # fp32, int8, mixed, int4
    assert list(result.modelled_s) == sorted(result.modelled_s, reverse=True)
    assert np.abs(result.errors).max() <= 0.20


def test_a_parameter_of_one_row_is_known_no_better_than_ten_percent(calibrations) -> None:
    (result,) = calibrations["tpu-v3"].results
    assert result.parameters[0].sd > 0.09


def test_the_spread_is_what_four_of_five_rows_of_unseen_networks_stay_within(calibrations) -> None:
    for name in ("a100", "mobile"):
        errors = np.sort(np.abs(list(calibrations[name].unseen.values())))
        spread = load_profile(name).latency_spread.value
        assert (errors <= spread + 5e-4).mean() == pytest.approx(0.8, abs=0.05)


def test_an_assumed_spread_is_a_floor(calibrations) -> None:
    assert calibrations["mobile-cpu"].spread < 0.35
    assert load_profile("mobile-cpu").latency_spread.value == 0.35


def small(tmp_path, rows):
    path = tmp_path / "rows.csv"
    header = "id,target,runtime,space,input,batch,precision,latency_ms,source,note\n"
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return path


ROWS = [
    "a,t4,TVM (HAWQ-V3 kernels),resnet18,,8,32,9.7,a row of this test,",
    "b,t4,TVM (HAWQ-V3 kernels),resnet18,,8,8,3.3,a row of this test,",
]


def test_the_command_prints_and_writes_only_where_it_is_told_to(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = small(tmp_path, ROWS)
    assert main(["calibrate", "t4", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "efficiency.conv/fp32" in printed
    assert "one model only: nothing could be left out" in printed
    assert "nothing is written without --out" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    out = tmp_path / "new" / "t4.toml"
    assert main(["calibrate", "t4", str(path), "--out", str(out), "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert set(raw) == {"profile", "measurements", "parameters", "fits", "unseen"}
    written = load_profile(str(out))
    assert [row[0] for row in written.fits[0].residuals] == ["a", "b"]
    assert written.efficiency["conv"].status == "fitted"
    assert "2 rows of TVM (HAWQ-V3 kernels) in rows.csv (resnet18)" in written.efficiency["conv"].source


def test_a_users_own_profile_file_is_calibrated_with_its_own_rows(tmp_path, capsys) -> None:
    board = tmp_path / "board.toml"
    shutil.copy(shipped("hardware_profiles") / "t4.toml", board)
    path = small(tmp_path, [row.replace(",t4,", ",board,") for row in ROWS])
    assert main(["calibrate", str(board), str(path), "--out", str(board)]) == 0
    assert "[[fits]]" in board.read_text()
    assert board.read_text().startswith("# NVIDIA T4"), "comments stay"


@pytest.mark.parametrize(
    ("target", "old", "new", "text"),
    [
        (
            "reference",
            "",
            "",
            r"reference\.toml: the profile says nothing about what is free; expected tables \[\[fits\]\]",
        ),
        ("t4:x", "", "", r"an option cannot be calibrated alone; got 't4:x'; expected the profile 't4'"),
        ("t4", ",t4,", ",a100,", r"no measurement of this runtime; got 'TVM .*; expected one of none for target 't4'"),
        ("t4", " (HAWQ-V3 kernels)", "", r"no measurement of this runtime; got 'TVM \(.*; expected one of TVM$"),
        ("t4", "resnet18", "resnet19", r"unknown search space; got 'resnet19'; .*did you mean 'resnet"),
        ("t4", ",32,", ",none.json,", r"none\.json: cannot read"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(tmp_path, target, old, new, text) -> None:
    with pytest.raises(InputError, match=text):
        calibrate(target, small(tmp_path, [ROWS[0].replace(old, new)]))


def test_an_unwritable_out_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    code = main(["calibrate", "t4", str(small(tmp_path, ROWS)), "--out", str(tmp_path / "file" / "x.toml")])
    assert code == 2
    assert "cannot write the profile" in capsys.readouterr().err
