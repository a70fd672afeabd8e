"""Timeouts of one length: a queue in order of arrival and a single timer for its head."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)


class Waiting(Protocol):
    """What a deadline can be set for."""

    stamp: float
    """Monotonic time (s) from which the timeout runs; moving it on postpones the deadline."""

    def expired(self) -> None:
        """The deadline has passed; it is not in the queue any more."""

    def crash(self) -> None:
        """End at once; `expired` has raised what it must not."""


class Deadlines:
    """Calls `Waiting.expired` of everything whose stamp is `timeout` old, a few ms late at most.

    Adding and removing are a dictionary operation each; postponing is an assignment to `Waiting.stamp`. Being
    due too early (because the stamp has moved) costs one look per timeout and thing.

    Args:
        loop: the event loop.
        timeout_ms: the length, the same for all in the queue.
    """

    _GRAIN = 0.005
    """Seconds by which the timer is late on purpose, so that neighbours expire together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_ms: int) -> None:
        self._loop = loop
        self._timeout = timeout_ms / 1000
        self._queue: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Waiting) -> None:
        """Set the deadline of something not in the queue: its stamp and the timeout."""
        self._queue[waiting] = waiting.stamp + self._timeout
        if self._timer is None:
            self._arm()

    def discard(self, waiting: Waiting) -> None:
        """Take the deadline away, if there is one."""
        self._queue.pop(waiting, None)

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due = next(iter(self._queue.values()))
        self._timer = self._loop.call_later(max(0.0, due - time.monotonic()) + self._GRAIN, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        queue = self._queue
        while queue:
            waiting, due = next(iter(queue.items()))
            if due > now:
                break
            del queue[waiting]
            postponed = waiting.stamp + self._timeout
            if postponed > now:
                queue[waiting] = postponed
            else:
                try:
                    waiting.expired()
                except Exception:
                    log.exception("%r failed; it is ended, the others go on", waiting)
                    waiting.crash()
        if queue and self._timer is None:
            self._arm()
