"""Measures by how much this machine delays threads: the reference for tests of durations.

While other processes keep the processors busy, the proxy, its clients and a sleeping thread all run late.
Tests subtract the time by which the sleeping thread sleeps too long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

_NAP: Final = 0.02
_SLACK: Final = 0.002
"""Seconds by which a sleep may be too long without counting as late."""
_naps: Final[deque[tuple[float, float]]] = deque(maxlen=20_000)
"""The end of each late nap, and the seconds by which it ended too late."""


def _sleep_on() -> None:
    while True:
        due = time.monotonic() + _NAP
        time.sleep(_NAP)
        woken = time.monotonic()
        if woken > due + _SLACK:
            _naps.append((woken, woken - due))


threading.Thread(target=_sleep_on, name="lateness", daemon=True).start()


def seconds_since(begun: float) -> float:
    """Return the seconds since a moment of `time.monotonic`."""
    return time.monotonic() - begun


def late_since(begun: float) -> float:
    """Return the seconds by which naps have ended too late since a moment of `time.monotonic`."""
    return sum(late for woken, late in [*_naps] if woken > begun)


def fair_seconds_since(begun: float) -> float:
    """Return the seconds since a moment, without the seconds of `late_since`: for an upper bound."""
    return seconds_since(begun) - late_since(begun)
