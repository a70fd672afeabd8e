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
"""The largest M_MMAP_THRESHOLD (bytes) that glibc accepts where pointers have 64 bits."""
_VARIABLES: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the freed memory of stream pieces, and reuse this memory for later pieces.

    By default, glibc returns freed memory to the kernel, and later requests memory again, page by page. With
    this setting, Refractium forwards a stream nearly twice as fast if a hook in a thread receives the stream.
    Settings of glibc in the environment take precedence. The function does not change other C libraries.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    with suppress(ImportError, OSError, AttributeError):
        # Imported here, because some interpreters lack ctypes but can run all other code.
        import ctypes  # noqa: PLC0415

        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_MMAP_THRESHOLD, _KEPT):
            mallopt(_TRIM_THRESHOLD, _KEPT)
