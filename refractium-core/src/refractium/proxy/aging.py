"""Finds the connections that are open for a second. Shorter connections cost no time here."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from refractium.guard.watchdog import WATCHDOG
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

AGE: Final = 1.0
"""Age (s) at which a connection settles."""
_PAUSE: Final = 0.25
"""Least time (s) between two looks, so that a look finds many connections."""
_LATE: Final = 0.005
"""Seconds that are added to a timer, because an event loop may call a timer a moment too early."""


class Settling(Protocol):
    """An object that still exists at the age of `AGE` seconds gets one call of `settle`."""

    @property
    def started(self) -> float:
        """Monotonic time (s) of the start."""

    def settle(self) -> None:
        """React to the age of `AGE` seconds."""


class Aging:
    """A timer that calls `Settling.settle` of each open connection at the age of `AGE` seconds.

    Each look goes from the newest connection back to the first connection that has already settled. So a look
    takes time only for open connections that have not settled yet. While all connections have settled, the
    timer does not run.

    Args:
        loop: the event loop.
        newest_first: the function that yields the open connections, in the reverse order of their start.

    Attributes:
        is_waiting: whether the timer runs. If not, the caller calls `begin` at the start of a connection.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, newest_first: Callable[[], Iterator[Settling]]
    ) -> None:
        self._loop = loop
        self._newest_first = newest_first
        self._timer: asyncio.TimerHandle | None = None
        self._settled_until = float("-inf")
        self._faults = Throttled(log)
        self.is_waiting = False

    def begin(self) -> None:
        """Start the timer, so that it finds a connection that starts now at the age of `AGE` seconds."""
        self._look_in(AGE)

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self.is_waiting = True
        self._timer = self._loop.call_later(seconds + _LATE, self._look)

    def _look(self) -> None:
        if WATCHDOG.wants_notice:
            WATCHDOG.notice()
        now = monotonic()
        until = now - AGE
        due = []
        oldest_young: float | None = None
        for one in self._newest_first():
            if one.started <= self._settled_until:
                break
            if one.started > until:
                oldest_young = one.started
            else:
                due.append(one)
        self._settled_until = until
        self.is_waiting = False
        if oldest_young is not None:
            self._look_in(max(_PAUSE, oldest_young - until))
        for one in reversed(due):
            try:
                one.settle()
            except Exception as error:  # noqa: BLE001 - logged, with the object
                self._faults.error("internal error in %s, which stays open", one, exc_info=error)
