"""What this machine is: its CPU, caches and memory, as far as Linux tells."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from haq.doctor import cpu_name_and_flags

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    """cpu: as the system names it. flags: its features. last_cache_bytes and memory_bytes may not be told."""

    cpu: str
    flags: frozenset[str]
    cores: int
    last_cache_bytes: int | None
    memory_bytes: int | None

    @property
    def vector_floats(self) -> int:
        """fp32 lanes of the widest vector unit: 16 with AVX-512, 8 with AVX2, else 4."""
        return 16 if "avx512f" in self.flags else 8 if "avx2" in self.flags else 4


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    cpu, flags = cpu_name_and_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cpu, flags, cores, last_cache_bytes(CACHES), _memory_bytes())


def last_cache_bytes(caches: Path) -> int | None:
    """The size of the largest data cache in a sysfs folder, `32768K` for example."""
    sizes = []
    for index in caches.glob("index*"):
        try:
            kind, text = ((index / name).read_text().strip() for name in ("type", "size"))
        except OSError:
            continue
        found = re.fullmatch(r"(\d+)([KMG]?)", text)
        if kind != "Instruction" and found:
            sizes.append(int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]])
    return max(sizes, default=None)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def busy_s() -> float | None:
    """Seconds that all cores together have worked since the system started; None where it does not tell."""
    try:
        fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        # user, nice, system, idle, iowait, irq, softirq, steal: all but idling and waiting for a disk
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


@dataclass
class OthersWatch:
    """How much of the machine other processes take. It changes: it remembers when it was started."""

    cores: int
    _start: tuple[float, float, float | None] = (0.0, 0.0, None)

    def start(self) -> None:
        self._start = self._now()

    def share(self) -> float | None:
        """The share of the cores' time that others took since the start; None where the system does not tell."""
        (wall, own, busy), (wall_0, own_0, busy_0) = self._now(), self._start
        if busy is None or busy_0 is None or wall <= wall_0:
            return None
        return max(0.0, (busy - busy_0) - (own - own_0)) / ((wall - wall_0) * self.cores)

    def _now(self) -> tuple[float, float, float | None]:
        return time.monotonic(), time.process_time(), busy_s()
