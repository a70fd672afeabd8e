"""The clock of events: wall-clock time that never goes back."""

from __future__ import annotations

from time import monotonic_ns, time_ns
from typing import Final

EPOCH: Final = time_ns() - monotonic_ns()
"""Nanoseconds to add to the monotonic clock. Refractium reads the wall clock only once, so a later change of
the wall clock has no effect."""


def timestamp() -> int:
    """Return the present time (ns since the epoch)."""
    return monotonic_ns() + EPOCH
