"""How the C library deals with the memory of what hooks are told."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Numbers of mallopt(3)."""
_KEPT: Final = 32 * 1024 * 1024
"""Bytes: the most that it takes for the latter, where pointers have 64 bits."""
_VARIABLES: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory that pieces of a stream took for those that follow.

    By default it gives it back to the kernel and fetches it anew, page by page. With this, a stream that a
    hook in a thread is told of passes nearly twice as fast. What the environment says is not overruled, and
    other C libraries are left as they are.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    with suppress(ImportError, OSError, AttributeError):
        # Here, since there are interpreters without it, which do all else.
        import ctypes  # noqa: PLC0415

        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_MMAP_THRESHOLD, _KEPT):
            mallopt(_TRIM_THRESHOLD, _KEPT)
