"""not-executed: the device runs a layer wider than the config says, so that the time or the bytes are not saved.

Mechanism: a target has kernels for some formats only. What it lacks runs in the next wider one, or is stored narrow and
multiplied wide; an exporter or a runtime may widen a layer once more. The accuracy of the narrow format is risked in
the search, and the device does not pay for it.

Statistic: `bits_wider`, bits of the weight or of what is read that run beyond those asked for, by the target's rules
or, where `haq verify` read the artifact, in the file. Of a layer that knowingly asks for narrow storage and wide
arithmetic (int8/bf16 on a TPU), `storage_cost`: the share of the latency that storing it wide would save.

Threshold: more than 0 bits, where running as asked would save at least 1 % of the modelled latency (less than any
profile's spread, and than what anybody tunes for) or 0.1 % of the bytes; what the artifact holds wider is always
reported. Storage alone is what was asked for and saves bytes: it is reported from 1 % of the latency on, or where it
saves no time while the config states a latency that is at least 1 % below what the target is modelled to take.
Everything else that runs otherwise than asked is listed as without an effect, once per kind.

Targets: TPU v3 and v4 have no integer arithmetic for a network's layers: int8/int8 runs as int8/bf16, and attention
products as bf16. A100: int4 convolutions run as int8; int4 Linear is storage with fp16 arithmetic. Mobile (HTP): int4
weights only in 1x1 convolutions and Linear with more than 32 outputs, else int8; fp32 runs as fp16, which is narrower
and so a matter of accuracy.

Repair: ask for a legal format of the same size, or for the format that runs anyway: accuracy comes back at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from haq.diagnose.costs import CostEvidence, Gap, signed, time
from haq.diagnose.finding import Suspicion
from haq.hardware.legalize import executable, execution
from haq.precision import Precision

MODE = "not-executed"
REPAIR = "ask for a legal format of the same size, or for the one that runs anyway: its accuracy comes at no cost"

LATENCY_SHARE = 0.01
SIZE_SHARE = 0.001


def detect(costs: CostEvidence) -> Iterator[Suspicion]:
    """Layers that run wider than asked, those with an effect each, the others once per kind and without one."""
    gaps = list(costs.gaps())
    harmless: dict[tuple[Precision, Precision, str], list[str]] = {}
    for gap, saved_ms in zip(gaps, costs.as_asked_ms(gaps), strict=True):
        saved_bytes = _stored_more(costs, gap)
        share = float(saved_ms) / costs.now.latency_ms
        if gap.bits_wider > 0 and (share >= LATENCY_SHARE or saved_bytes >= SIZE_SHARE * costs.now.size_bytes):
            yield _fallback(costs, gap, float(saved_ms), saved_bytes)
        else:
            harmless.setdefault((gap.asked, gap.executed, gap.reason), []).append(gap.layer.name)
    for (asked, executed, reason), layers in harmless.items():
        yield _without_effect(asked, executed, reason, tuple(layers))
    yield from _storage_only(costs, frozenset(gap.layer.name for gap in gaps))
    yield from _read_back(costs)


def _stored_more(costs: CostEvidence, gap: Gap) -> int:
    """Bytes that are stored beyond those of the format asked for."""
    return costs.saved_bytes({gap.layer.name: gap.asked})


def _fallback(costs: CostEvidence, gap: Gap, saved_ms: float, saved_bytes: int) -> Suspicion:
    layer, why = gap.layer.name, f" ({gap.reason})" if gap.reason else ""
    text = (
        f"{layer} is asked for {gap.asked} and runs in {gap.executed}{why}: {_difference(saved_ms, saved_bytes)} than "
        f"as asked; {_way_out(costs, gap)}"
    )
    return Suspicion(
        MODE, layer, "bits_wider", gap.bits_wider, 0, saved_ms / costs.now.latency_ms, text,
        effect=costs.effect(saved_ms, saved_bytes),
    )  # fmt: skip


def _way_out(costs: CostEvidence, gap: Gap) -> str:
    """The fastest legal format that is no larger than what was asked, or what runs."""
    legal = [
        p for p in executable(costs.profile, gap.layer)
        if p == p.plain and p.weight.bits <= gap.asked.weight.bits and p != gap.executed
    ]  # fmt: skip
    if gap.layer.weight is not None and gap.executed.weight.bits > gap.asked.weight.bits and legal:
        saved = costs.saved_ms([{gap.layer.name: p} for p in legal])
        best = int(saved.argmax())
        return f"{legal[best]} is legal and as small, and takes {signed(float(-saved[best]))}"
    levels = costs.table.entries.executed[costs.table.layers.index(gap.layer.name)]
    same_bits = [bits for bits, precision in zip(costs.table.bits, levels, strict=True) if precision == gap.executed]
    as_bits = f" ({same_bits[-1]} bits)" if same_bits else ""
    return f"ask for {gap.executed}{as_bits}, which runs anyway: its accuracy comes at the same time and size"


def _without_effect(asked: Precision, executed: Precision, reason: str, layers: tuple[str, ...]) -> Suspicion:
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    why = f" ({reason})" if reason else ""
    text = f"{layers[0]}{more}: asked for {asked}, runs in {executed}{why}; running as asked would save too little"
    value = max(executed.weight.bits - asked.weight.bits, executed.activation.bits - asked.activation.bits)
    if value < 0:
        text = f"{layers[0]}{more}: asked for {asked}, runs in the narrower {executed}{why}, which costs no time"
    return Suspicion(MODE, layers[0], "bits_wider", value, 0, 0.0, text, layers=layers)


def _storage_only(costs: CostEvidence, skipped: frozenset[str]) -> Iterator[Suspicion]:
    """Weights stored narrow and multiplied wide, as asked, for which storing them wide costs no time or saves it."""
    wide: dict[str, Precision] = {}
    for name in costs.workload.layer_names:
        now = costs.executed.precision(name)
        format = now.activation.plain
        if now.is_storage_only and name not in skipped and Precision(format, format) in costs.wider(name):
            wide[name] = Precision(format, format)
    total_ms, promised_ms = costs.now.latency_ms, costs.promised_ms
    is_broken = promised_ms is not None and total_ms - promised_ms >= LATENCY_SHARE * total_ms
    saved = costs.saved_ms([{name: precision} for name, precision in wide.items()])
    for (name, precision), saved_ms in zip(wide.items(), map(float, saved), strict=True):
        if saved_ms < (0 if is_broken else LATENCY_SHARE * total_ms):
            continue
        saved_bytes = costs.saved_bytes({name: precision})
        promise = f", and the config states {time(promised_ms)}" if is_broken and promised_ms is not None else ""
        text = (
            f"{name} is stored as {costs.executed.precision(name).weight} and multiplied as {precision.weight}: stored "
            f"as that too, the network takes {signed(-saved_ms)} and {-saved_bytes:,} bytes more{promise}"
        )
        yield Suspicion(
            MODE, name, "storage_cost", saved_ms / total_ms, LATENCY_SHARE, saved_ms / total_ms, text,
            effect=costs.effect(saved_ms, saved_bytes),
        )  # fmt: skip


def _read_back(costs: CostEvidence) -> Iterator[Suspicion]:
    """Layers that stand in the artifact wider than the target would run them."""
    for name, found in costs.read_back.items():
        runs = costs.executed.precision(name)
        if found is None or (found.weight.bits <= runs.weight.bits and found.activation.bits <= runs.activation.bits):
            continue
        wider = max(found.weight.bits - runs.weight.bits, found.activation.bits - runs.activation.bits)
        there = execution(costs.profile, costs.layers[name], found)[0]
        saved_ms, saved_bytes = -float(costs.saved_ms([{name: there}])[0]), -costs.saved_bytes({name: found})
        text = (
            f"{name} stands in the artifact as {found}, the config says {runs}: {_difference(saved_ms, saved_bytes)} "
            "than as the config has it; export it again, in a format that can hold it"
        )
        yield Suspicion(
            MODE, name, "bits_wider", wider, 0, max(saved_ms, 0.0) / costs.now.latency_ms, text,
            effect=costs.effect(saved_ms, saved_bytes),
        )  # fmt: skip


def _difference(saved_ms: float, saved_bytes: int) -> str:
    """`12 us and 1,024 bytes more`; bytes only where they differ."""
    stored = f" and {abs(saved_bytes):,} bytes {'more' if saved_bytes > 0 else 'less'}" if saved_bytes else ""
    if not saved_ms and stored:
        return stored.removeprefix(" and ")
    return f"{time(saved_ms)} {'more' if saved_ms >= 0 else 'less'}{stored}"
