"""What this machine and this installation offer: CPU features, threads, packages, extras and the cache."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from haq.diskcache import CacheUsage, usage

_CORE = ("torch", "numpy", "scipy", "optuna", "pandas", "matplotlib", "pydantic", "click", "rich")

_FEATURES = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    # Without one of these, ONNX Runtime's int8 kernels saturate (16-bit pair sums), so artifacts need its precise mode.
    "vnni": ("avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"),
    "amx_int8": ("amx_int8",),
    "neon_dotprod": ("asimddp", "feat_dotprod"),
}
"""Feature -> the flags by which Linux or macOS names it."""


@dataclass(frozen=True)
class Extra:
    """An optional group of packages. missing: those that are not installed."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Checkup:
    """What `haq doctor` found. cpu_features: feature -> present, empty where the system does not tell."""

    python: str
    system: str
    cpu: str
    cpu_features: tuple[tuple[str, bool], ...]
    cores_usable: int
    threads_from_environment: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    extras: tuple[Extra, ...]
    cache: CacheUsage

    def to_json(self) -> dict[str, Any]:
        raw = asdict(self)
        for key in ("cpu_features", "threads_from_environment", "packages"):
            raw[key] = dict(raw[key])
        return {
            **raw,
            "extras": {e.name: {"missing": list(e.missing)} for e in self.extras},
            "cache": self.cache.to_json(),
        }


def check_up() -> Checkup:
    """Look at the machine and the installation; imports none of the packages it reports."""
    name, flags = cpu_name_and_flags()
    return Checkup(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=name,
        cpu_features=tuple(features_of(flags).items()),
        cores_usable=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads_from_environment=tuple(
            (key, os.environ[key]) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ
        ),
        packages=tuple((package, _version(package)) for package in ("haq", *_CORE)),
        extras=tuple(Extra(extra, missing) for extra, missing in _extras(importlib.metadata.requires("haq") or ())),
        cache=usage(),
    )


def features_of(flags: frozenset[str]) -> dict[str, bool]:
    """Feature -> whether a CPU with these flags has it; empty where the system does not tell."""
    return {name: any(alias in flags for alias in aliases) for name, aliases in _FEATURES.items()} if flags else {}


def cpu_name_and_flags() -> tuple[str, frozenset[str]]:
    """The CPU's name and its feature flags in lower case (none where the system does not tell)."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        name = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        return (
            name.group(1) if name else platform.processor() or "unknown",
            frozenset(flags.group(1).lower().split()) if flags else frozenset(),
        )
    if sys.platform == "darwin":
        listing = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False).stdout
        name = re.search(r"^machdep\.cpu\.brand_string: (.+)$", listing, re.MULTILINE)
        on = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): 1$", listing, re.MULTILINE)
        return name.group(1) if name else platform.processor(), frozenset(flag.lower() for flag in on)
    return platform.processor() or "unknown", frozenset()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extras(requirements: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each extra with its packages that are not installed; an extra that names other extras of haq includes theirs."""
    wants: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if extra:
            wants.setdefault(extra.group(1), []).append(requirement.split(";")[0])

    def missing(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in wants.get(extra, ()):
            name = re.match(r"[\w.-]+", requirement)
            inner = re.match(r"haq\[([\w,\s-]+)\]", requirement)
            if inner:
                found |= {package for part in inner.group(1).split(",") for package in missing(part.strip())}
            elif name and _version(name.group()) == "not installed":
                found.add(name.group())
        return found

    return [(extra, tuple(sorted(missing(extra)))) for extra in sorted(wants)]
