"""Compare our search with public mixed-precision tools: accuracy at equal size, size at equal accuracy, and time.

    python -m venv /tmp/peers && . /tmp/peers/bin/activate
    pip install torch==2.13.0 && pip install -r experiments/search/peers-requirements.txt && deactivate
    python experiments/search/peers.py --python /tmp/peers/bin/python [--work DIR] [--search "..."] [SPACE ...]

(An environment of its own, since the tools pin old packages; no torchvision in it. `--search` adds flags to `haq
search`, such as "--trials 96".) Writes peers.csv beside this file; rows of spaces that are not named stay. What DIR
holds already is not done again: our searches, and the tools' choices for this network, these data and these budgets.

Every tool gets the network with batch norm folded and the calibration batches, and chooses 4 or 8 bits for the weight
of every layer, activations int8, under three budgets: SHARES of the way from all layers at 4 bits to all at 8. A budget
is given to each tool in its own unit, bits per weight or bytes of weights. Whatever was chosen is then quantized and
measured in our simulator, with our default stack, on both splits, and sized by `haq.hardware.size` for the target
`reference`. Ours is `haq search --target reference --max-size-mb BUDGET`: the point of that run with the least drop on
the search split, of equals the one with the least KL divergence; with `--by kl_nats` the other way around, which is
less a matter of luck where accuracy hardly moves. Nothing is chosen on validation.

Left out: OpenVINO NNCF's accuracy control returns layers to float and has no size budget; AIMET's AMP takes a drop, not
a size, and walks by bit operations.

Columns. tool `haq`: ours; `uniform`: all layers at 4 or 8 bits. drop_points, drop_low, drop_high: under FP32 on the
same samples, 95 % interval. wall_s: of the choice alone, on one thread; imports and start-up are left out for the tools
and counted for ours, which starts with an empty cache of quantized layers and includes its last look at validation.
sample_forwards: samples sent through the network, backward passes not counted. equal_size_...: our best point of all
three searches that is no larger than the tool's; gain_...: how many points it is better on this split, paired.
equal_accuracy_bytes, equal_kl_bytes: our smallest point that is no worse on the search split; empty if there is none.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from peers_table import COLUMNS, TARGET, Chosen, Measured, Ours, Subject, best, executed, rows, subject, weights

from haq.front import Point, measured_points
from haq.history import summarize
from haq.resources import cache_dir
from haq.rundir import read_run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "peers.csv"
SPACES = ("mnist_resnet18", "solar_efficientnet_lite0")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
TOOLS = ("modelopt-kl", "modelopt-gradient", "mct")


def public(net: Subject, tool: str, python: str, folder: Path) -> Iterator[Chosen]:
    """What a tool chooses in its own environment; nothing, with a note, where it fails."""
    budgets = {name: weight_bytes for name, (_, weight_bytes) in net.budgets.items()}
    made_of = [net.bundle.weights_hash, net.bundle.data_hash, budgets]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    answer, log = folder / f"{tool}.json", folder / f"{tool}.log"
    if not answer.exists() or json.loads(answer.read_text())["network"] != key:
        network = {"model": net.model, "calibration": list(net.task.calibration()), "weights": weights(net.workload)}
        torch.save({**network, "budgets": budgets, "key": key}, folder / "network.pt")
        command = [python, str(HERE / "peers_public.py"), tool, str(folder)]
        with log.open("w") as file:
            environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parents[1])}
            done = subprocess.run(command, stdout=file, stderr=file, env=environment)
        if done.returncode != 0:
            print(
                f"{tool} did not run on {net.name}: {log.read_text().strip().splitlines()[-1]} ({log})", file=sys.stderr
            )
            return
    found = json.loads(answer.read_text())
    for budget, choice in found["choices"].items():
        assert set(choice["bits"]) == set(weights(net.workload)), "the tool and haq see other layers"
        precisions = executed(net.workload, choice["bits"], 32)
        yield Chosen(
            tool, found["version"], found["settings"], budget, precisions, choice["wall_s"], choice["sample_forwards"]
        )


def own(net: Subject, budget: str, arguments: argparse.Namespace, folder: Path) -> tuple[Chosen, tuple[Point, ...]]:
    """Our choice for a budget, and every point that was measured for it."""
    out, clock = folder / f"haq-{budget}", folder / f"haq-{budget}.seconds"
    if not clock.exists():
        # Quantized layers that an earlier search left in the cache would make this one look faster than it is.
        cache = folder / f"cache-{budget}"
        shutil.copytree(cache_dir() / "weights", cache / "weights", dirs_exist_ok=True)
        limit = f"{net.budgets[budget][0] / 1e6:.6f}"
        command = [Path(sys.executable).with_name("haq"), "search", "--space", net.name, "--target", TARGET]
        command += ["--max-size-mb", limit, *shlex.split(arguments.search), "--out", out]
        start = time.perf_counter()
        environment = {**os.environ, **ONE_THREAD, "HAQ_CACHE_DIR": str(cache)}
        subprocess.run([str(part) for part in command], check=True, env=environment)
        clock.write_text(f"{time.perf_counter() - start:.1f}\n")
    run = read_run(out)
    assert run.info["provenance"]["weights_hash"] == net.bundle.weights_hash, "a run of other weights"
    points = tuple(p for p in measured_points(run.history.candidates, TARGET) if p.result.is_feasible)
    chosen = best(points, net.budgets[budget][0], arguments.by)
    assert chosen is not None, f"{out} holds no point within its budget"
    about = (
        "haq",
        run.info["versions"]["haq"],
        f"search {arguments.search}; least {arguments.by}",
        budget,
        chosen.result.executed,
    )
    return Chosen(*about, float(clock.read_text()), summarize(run.history).sample_forwards), points


def measure(space: str, arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    net = subject(space)
    folder: Path = arguments.work / space
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [Chosen("uniform", "", f"int{bits}/int8", "", executed(net.workload, {}, bits)) for bits in (4, 8)]
    for tool in arguments.tools.split(","):
        chosen += public(net, tool, arguments.python, folder)
    points: list[Point] = []
    for budget in net.budgets:
        ours, measured_for_it = own(net, budget, arguments, folder)
        chosen.append(ours)
        points += measured_for_it
    measured = Measured(net)
    for choice in chosen:
        yield from rows(net, choice, Ours(tuple(points), arguments.by), measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spaces", nargs="*", default=SPACES, metavar="SPACE")
    parser.add_argument("--python", required=True, help="of the environment that the tools are installed in")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="keeps choices and searches")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument(
        "--by", choices=("drop_points", "kl_nats"), default="drop_points", help="what ours is chosen by"
    )
    parser.add_argument("--search", default="", metavar="FLAGS", help="more flags of `haq search`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for space in arguments.spaces:
        found = list(measure(space, arguments))
        kept = [row for row in _read() if row["network"] != space]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(kept + found, key=lambda row: row["network"]))


def _read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
