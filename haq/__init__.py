"""The public names of haq, each loaded when it is first used, so that `import haq` costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Assignment": "haq.precision",
    "Candidate": "haq.candidate",
    "Config": "haq.config",
    "Constraints": "haq.constraints",
    "HaqError": "haq.errors",
    "InputError": "haq.errors",
    "Precision": "haq.precision",
    "Run": "haq.rundir",
    "SearchSpace": "haq.space",
    "Spec": "haq.spec",
    "Workload": "haq.workload",
    "estimate": "haq.api",
    "load": "haq.nn.load",
    "load_profile": "haq.hardware.profile",
    "load_space": "haq.spacefile",
    "monitor": "haq.nn.monitor",
    "read_run": "haq.rundir",
    "search": "haq.api",
    "trace": "haq.nn.trace",
}
"""Public name -> the module that it lives in."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'haq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
