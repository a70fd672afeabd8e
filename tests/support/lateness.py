"""How late this machine is at this moment: the reference for tests of how long something takes.

While other processes keep the processors busy, whoever asks for a turn gets it late: the proxy, its clients,
and a thread that does nothing but sleep. The others are allowed what
that thread sleeps too long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

_NAP: Final = 0.02
_SLACK: Final = 0.002
"""Seconds by which every sleep may be too long."""
_naps: Final[deque[tuple[float, float]]] = deque(maxlen=20_000)
"""When each nap has ended, and how many seconds too late."""


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
    """Return by how many seconds since a moment turns came too late."""
    return sum(late for woken, late in [*_naps] if woken > begun)


def fair_seconds_since(begun: float) -> float:
    """Return the seconds since a moment, without those by which turns came too late: for an upper bound."""
    return seconds_since(begun) - late_since(begun)
