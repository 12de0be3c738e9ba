"""What the command line sets for its own process, so that measurements are quick on busy machines and large images."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST_INT = 2**31 - 1


def let_waiting_threads_sleep() -> None:
    """Choose OpenMP's passive waiting unless the user chose something; to be called before torch loads.

    Threads that spin while they wait make a measurement 30 times slower as soon as another process wants a core
    (ResNet-18, 1,000 digits: 0.5 s became 15 s); asleep they cost a third on an idle machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse large blocks instead of returning them to the system; False where there is no glibc.

    By default every tensor above 32 MB is mapped anew and each of its pages faults once per use. For the whole process;
    its memory then stays at its peak. Measured on EfficientNet-Lite0, 32 images of 160 x 160, one thread: FP32 forward
    445 -> 161 ms, all layers int8 630 -> 215 ms.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
