"""The moment at which a connection counts as long-lived. Shorter connections cost nothing here."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

AGE: Final = 1.0
"""Seconds after its start at which a connection settles."""
_PAUSE: Final = 0.25
"""Least time (s) between two looks, so that a look finds many connections."""
_LATE: Final = 0.005
"""Seconds that are added to a timer, because an event loop may call a timer a moment too early."""


class Settling(Protocol):
    """An object that settles `AGE` seconds after its start, if it still exists."""

    @property
    def started(self) -> float:
        """Monotonic time (s) of the start."""

    def settle(self) -> None:
        """Act, because this object is `AGE` seconds old."""


class Aging:
    """A regular look at the newest connections, which calls `Settling.settle` of each, `AGE` seconds old.

    The look begins at the newest connection, and stops at the first connection that has settled. So a look
    costs time only for connections that are open now and that have begun since the last look. While every
    connection has settled, there is no timer.

    Args:
        loop: the event loop.
        newest_first: the function that yields the open connections, in the reverse order of their start.

    Attributes:
        is_waiting: whether a look is due. If not, the caller calls `begin` at the start of a connection.
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
        """Look when the connection that begins now is `AGE` seconds old."""
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
                self._faults.error("internal error in %s, which goes on", one, exc_info=error)
