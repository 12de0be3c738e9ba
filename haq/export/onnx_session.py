"""How ONNX Runtime must be asked to compute what an artifact says, instead of something faster."""

from __future__ import annotations

from collections.abc import Mapping

PRECISE: Mapping[str, str] = {
    # Without VNNI, 8-bit products are added up in 16 bits, which saturate.
    "session.x64quantprecision": "1",
    # A product with 4-bit weights would round its other operand to 8 bits (level 4).
    "session.qdq_matmulnbits_accuracy_level": "1",
}
"""Entries of a session's configuration."""

REFUSED = ("WeightBiasQuantization",)
"""Optimizers to switch off: it quantizes float weights and biases of layers whose operand is an integer."""
