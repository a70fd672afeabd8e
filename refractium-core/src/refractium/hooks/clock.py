"""The time of events: that of the wall clock, and yet it never goes back."""

from __future__ import annotations

from time import monotonic_ns, time_ns
from typing import Final

EPOCH: Final = time_ns() - monotonic_ns()
"""Added to the monotonic clock (ns). The wall clock is read once, so that setting it changes nothing."""


def timestamp() -> int:
    """Now (ns since the epoch)."""
    return monotonic_ns() + EPOCH
