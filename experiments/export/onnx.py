"""Exports front points to ONNX and runs them in ONNX Runtime on a whole evaluation split, beside the simulation.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/export/onnx.py [SPACE ...]

Per network three points of fronts on `reference`: uniform int8, and two points with the most different bit-widths of
searches in which some layers are pinned to 32, 16 and 8 bits, so that artifacts hold int4, int8, fp16 and fp32 side by
side. Searches run in `runs/export/` and go on where they stopped. Writes onnx.csv, rows of other networks stay:
accuracy of artifact and simulation on the search split (*measured*), agreement, the largest output error, bytes of the
stored numbers against those promised, and the gate's verdict with its default limits.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, RUNS = HERE / "onnx.csv", Path("runs/export")
PINS = {
    "mnist_resnet18": ({"conv1": 32, "fc": 16, "layer2.*": 8}, {"conv1": 16, "layer1.*": 8, "layer2.0.conv2": 32}),
    "mnist_mobilenet_v3_small": (
        {"features.0.0": 32, "classifier.3": 16, "features.4.*": 8},
        {"features.0.0": 16, "features.3.*": 32, "features.5.*": 8},
    ),
    "reviews_minilm": ({"bert.encoder.layer.0.output.dense": 32, "classifier": 16},),
    "solar_efficientnet_lite0": ({"_conv_stem": 32, "_fc": 16},),
}
"""Space -> pins of one or two further searches: layer -> the one bit-width that it takes."""

COLUMNS = [
    "space", "config", "kind", "layers_int4", "layers_int8", "layers_fp16", "layers_fp32", "samples", "split",
    "accuracy_artifact", "accuracy_simulated", "gap_points", "agreement", "largest_error", "largest_output",
    "initializer_bytes", "promised_bytes", "size_gap_percent", "file_bytes", "as_asked", "wider_in_runtime",
    "latency_ms", "passed", "faults",
]  # fmt: skip


def main(spaces: list[str]) -> None:
    for space in spaces:
        rows = [row(space, kind, path) for kind, path in configs(space)]
        kept = [old for old in read() if old["space"] != space]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(sorted([*kept, *rows], key=lambda r: list(PINS).index(r["space"])))


def configs(space: str) -> Iterator[tuple[str, Path]]:
    """The uniform int8 point, and two of most different widths from the fronts of the pinned searches."""
    uniform = search(space, "uniform", "--trials", "1")
    yield from (("uniform int8", path) for path in sorted(uniform.glob("configs/*.json"))[:1])
    points = []
    for number, pinned in enumerate(PINS[space]):
        pins = [part for layer, bits in pinned.items() for part in ("--pin", f"{layer}={bits}")]
        out = search(space, f"mixed{number or ''}", "--trials", "16", *pins)
        found = sorted(out.glob("configs/*.json"))
        richest = sorted(found, key=lambda path: (-sum(n > 0 for n in counts(path).values()), -spread(path)))
        points.append(richest[: 2 // len(PINS[space])])
    yield from (("mixed", path) for chosen in points for path in chosen)


def search(space: str, name: str, *arguments: str) -> Path:
    out = RUNS / f"{space}-{name}"
    haq("search", "--space", space, "--target", "reference", "--out", str(out), *arguments)
    return out


def counts(path: Path) -> dict[int, int]:
    """Bits of a layer's weights -> layers."""
    widths = {"int4": 4, "int8": 8, "fp16": 16, "fp32": 32}
    found = dict.fromkeys(widths.values(), 0)
    for precision in json.loads(path.read_text())["layers"].values():
        found[widths[precision.split("/")[0]]] += 1
    return found


def spread(path: Path) -> int:
    """Layers of the rarest width that is there: mixes are worth more than one odd layer."""
    return min(n for n in counts(path).values() if n)


def row(space: str, kind: str, path: Path) -> dict[str, Any]:
    found = json.loads(haq("verify", str(path), "--json"))
    values = {line["check"]: line["values"] for line in found["lines"]}
    size, accuracy, agreement = values["stored numbers"], values["accuracy"], values["agreement"]
    error, latency = values["largest output error"], values["latency"]
    wider = next((line["measured"] for line in found["lines"] if line["check"] == "runs wider here"), "0 layers")
    as_asked = next(line["measured"] for line in found["lines"] if line["check"] == "realised precision")
    layers = counts(path)
    about = {
        "space": space, "config": path.stem, "kind": kind,
        "layers_int4": layers[4], "layers_int8": layers[8], "layers_fp16": layers[16], "layers_fp32": layers[32],
        "as_asked": as_asked, "wider_in_runtime": wider,
        "passed": found["passed"], "faults": "; ".join(found["faults"]),
        "initializer_bytes": size["initializer_bytes"], "promised_bytes": size["promised_bytes"],
        "size_gap_percent": f"{100 * size['gap']:.2f}", "file_bytes": values["file size"]["file_bytes"],
    }  # fmt: skip
    print(json.dumps({**about, "accuracy": accuracy, "agreement": agreement, "error": error, "latency": latency}))
    return {
        **about,
        "samples": accuracy["samples"],
        "split": accuracy["split"],
        "accuracy_artifact": f"{accuracy['accuracy']:.4f}",
        "accuracy_simulated": f"{accuracy['simulated']:.4f}",
        "gap_points": f"{accuracy['gap_points']:.2f}",
        "agreement": f"{agreement['agreement']:.4f}",
        "largest_error": f"{error['largest_error']:.4g}",
        "largest_output": f"{error['largest_output']:.4g}",
        "latency_ms": f"{latency['latency_ms']:.3f}",
    }


def haq(*arguments: str) -> str:
    """What a command of haq prints; a closed gate (exit 1) is a result."""
    command = [str(Path(sys.executable).with_name("haq")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def read() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(sys.argv[1:] or list(PINS))
