"""A diagnosis as JSON and as a picture, of evidence that was written down by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diagnosis_fakes import CLIPPED, FLOAT, NAMES, OUTLIERS, diagnosis, evidence
from matplotlib.text import Text

from haq.diagnose.finding import Effect
from haq.diagnose.plain import diagnosis_json, explained_share
from haq.report.diagnosis_page import diagnosis_figure, draw_diagnosis, worst_operands


def test_json_ranks_findings_by_effect_and_leaves_out_what_is_unknown() -> None:
    raw = json.loads(json.dumps(diagnosis_json(diagnosis()), allow_nan=False))
    first, second = raw["findings"]
    assert (first["mode"], second["mode"]) == ("activation-outliers", "no-speedup")
    assert first["effect"] == {
        "points": 2.0, "points_interval": {"low": 0.5, "high": 3.5}, "nats": 0.03,
        "nats_interval": {"low": 0.02, "high": 0.04}, "samples": 256,
    }  # fmt: skip
    assert first["change"] == {"repairs": [{"kind": "clip", "layer": OUTLIERS, "index": 0}], "raised": {}}
    assert second["effect"]["size_bytes"] == -1024
    assert "samples" not in second["effect"]
    assert "change" not in second
    (suspected,) = raw["suspected"]
    assert "severity" not in suspected  # infinite, which JSON has no word for
    assert suspected["change"]["raised"] == {FLOAT: "fp32/fp32"}
    # 0.03 of 0.04 nats.
    assert raw["explained_share"] == pytest.approx(0.75)
    assert raw["unexplained_share"] == pytest.approx(0.25)


def test_a_share_is_one_at_most_and_unknown_where_nothing_was_lost() -> None:
    lucky = replace(diagnosis(), explained=Effect(points=3.0, nats=0.05))
    assert explained_share(lucky) == 1.0
    assert explained_share(replace(diagnosis(), lost=Effect(points=0.0, nats=0.0))) is None
    assert "explained_share" not in diagnosis_json(replace(diagnosis(), lost=Effect(points=0.0, nats=0.0)))
    by_points = replace(diagnosis(), lost=Effect(points=4.0), explained=Effect(points=1.0))
    assert explained_share(by_points) == 0.25


def test_the_picture_names_layers_draws_the_worst_tensors_and_marks_findings(tmp_path: Path) -> None:
    found = evidence()
    assert [o.layer for o in worst_operands(tuple(found.layers.values()))][:2] == [CLIPPED, OUTLIERS]
    figure = diagnosis_figure(found, diagnosis(), "net on a100")
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    red = {text.get_text().split()[0] for text in texts if text.get_color() == "#b3261e" and text.get_text()}
    assert red == {OUTLIERS, NAMES[0], NAMES[1]}
    said = [text.get_text() for text in texts]
    assert any("9.0 dB in use, 38.0 dB at best" in text for text in said)
    assert "net on a100\n64 samples looked at" in said
    draw_diagnosis(found, diagnosis(), "net on a100", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_network_without_quantized_operands_has_no_histograms() -> None:
    found = evidence()
    layers = {name: replace(layer, operands=(), weight=None, output=None) for name, layer in found.layers.items()}
    figure = diagnosis_figure(replace(found, layers=layers), diagnosis(), "fp32")
    figure.canvas.draw()
    assert not any("dB in use" in text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    assert np.isfinite([axes.get_position().height for axes in figure.axes]).all()
