"""docs/failure_modes.md says what the detectors, the profiles and the committed results say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "diagnose"))

import document
import targets

from haq.diagnose.detectors import COST_DETECTORS, DETECTORS

MODES = (*DETECTORS, *COST_DETECTORS)


def test_the_committed_text_is_what_is_generated_now():
    committed = (document.DOCS / "failure_modes.md").read_text()
    assert document.document(document.RESULTS) == committed, "run experiments/diagnose/document.py --no-pictures"


@pytest.mark.parametrize("mode", MODES)
def test_every_detector_explains_itself_in_five_paragraphs(mode):
    what, told = document.paragraphs(mode)
    assert what
    assert tuple(told) == document.PARTS
    assert all(text.endswith(".") for text in told.values())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_picture_a_caption_and_a_verdict_per_target(mode):
    assert (document.PICTURES / f"{mode}.png").is_file()
    assert document.CAPTIONS[mode]
    for target in targets.TARGETS:
        applies, why = targets.APPLIES[mode](targets.facts(target))
        assert applies
        assert why


def test_verdicts_follow_the_profiles():
    tpu, phone = targets.facts("tpu-v4"), targets.facts("mobile")
    assert targets.ranges(tpu)[0] == "no"
    assert "`int8/bf16`" in targets.ranges(tpu)[1]
    assert targets.ranges(phone)[0] == "yes"
    assert "rescale" in targets.float_range(phone)[1], "an HTP has no wider float to flee to"
    assert "`fp32/fp32` is executed" in targets.float_range(targets.facts("a100"))[1]
    assert "`fp32/fp32` runs as `fp16/fp16`" in targets.not_executed(phone)[1]
    assert targets.no_speedup(tpu)[0] == "hardly"
