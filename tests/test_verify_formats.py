"""Every format that the ONNX exporter writes is read back from the file as what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from export_nets import exportable_of, picture_bundle, text_bundle

from haq.export import EXPORTERS
from haq.nn.bundle import Bundle
from haq.verify.artifact import TellsMore, open_artifact
from haq.verify.measuring import How, measure

FORMATS = (
    "int8/int8", "int4/int8", "int4/int4", "int8/int16", "int4g32/int8", "int4g32/int8t", "int8/int8t", "int8/bf16",
    "int4g64/fp16", "fp16/fp16", "bf16/bf16", "fp32/fp32",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each network is captured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("bundle", [picture_bundle(), text_bundle()], ids=["pictures", "texts"])
def test_what_is_read_back_is_what_was_asked(bundle: Bundle, tmp_path: Path) -> None:
    layers = tuple(exportable_of(bundle, "fp32/fp32").workload.layer_names)
    # Turned by one each time, every layer meets formats beside every other.
    for start in range(0, len(FORMATS), 3):
        asked = {layer: FORMATS[(start + number) % len(FORMATS)] for number, layer in enumerate(layers)}
        for layer in layers:  # a product has no weight, and both operands take 8 bits or more
            asked[layer] = "int8/int8" if "matmul" in layer or layer == "embed" else asked[layer]
        what = exportable_of(bundle, asked)
        EXPORTERS["onnx-qdq"](what, tmp_path / "m.onnx", {})
        artifact = open_artifact(tmp_path / "m.onnx", what.config)
        assert {layer: str(p) for layer, p in artifact.realised().items()} == asked
        found = measure(artifact, what, How("search", 1))
        for key, (one, other) in found.scales.items():
            np.testing.assert_allclose(other, one, rtol=1e-6, err_msg=str(key))
        quantized = {layer for layer, text in asked.items() if text.startswith("int") and "matmul" not in layer}
        assert {layer for layer, which in found.scales if which == "weight"} == quantized
        static = {layer for layer, text in asked.items() if text.endswith(("/int4", "/int8", "/int16"))} - {"embed"}
        assert {layer for layer, which in found.scales if which != "weight"} == static
        emulated = {layer for layer, text in asked.items() if "bf16" in text}
        assert isinstance(artifact, TellsMore)
        note = next((note for note in artifact.notes() if "multiplies no bf16" in note), "")
        assert all(layer in note for layer in emulated)
        assert set(found.arithmetic.values()) <= {"int8", "fp32"}
