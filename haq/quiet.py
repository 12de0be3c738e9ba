"""Keeps what a library in C prints on its own out of our output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Discards what the process writes to standard output meanwhile, text that C still buffers included.

    Python's `redirect_stdout` does not reach C, and a stray line would break `--json`. Without a standard output, or
    where C's buffers cannot be reached (Windows), nothing is discarded.
    """
    if os.name != "posix":
        yield
        return
    flush = ctypes.CDLL(None).fflush
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    try:
        flush(None)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
