"""Settings of the C library's allocator for the memory of hook events."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Numbers of the two parameters of mallopt(3)."""
_KEPT: Final = 32 * 1024 * 1024
"""Bytes: the largest M_MMAP_THRESHOLD that glibc takes where pointers have 64 bits."""
_VARIABLES: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the freed memory of stream pieces, and reuse it for the pieces that follow.

    By default glibc returns the memory to the kernel and fetches it again, page by page. With this setting, a
    stream passes nearly twice as fast if a hook in a thread gets it. Settings in the environment take
    precedence, and other C libraries are left unchanged.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    with suppress(ImportError, OSError, AttributeError):
        # Imported here, because some interpreters lack ctypes and can do everything else.
        import ctypes  # noqa: PLC0415

        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_MMAP_THRESHOLD, _KEPT):
            mallopt(_TRIM_THRESHOLD, _KEPT)
