"""Deadlines for timeouts of one length, sorted into slots of time, with one timer for the next slot."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from refractium.guard.watchdog import WATCHDOG
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

_SLOTS: Final = 256
"""Number of slots into which a timeout is divided; a deadline may be late by one slot."""
_SHORTEST: Final = 0.005
"""Length of the shortest slot (s), so that deadlines close to each other expire together."""
_SOON: Final = 0.001
"""Length of a timer (s) for a slot that is already due. With timers of 0 s, an event loop never sleeps."""


class Waiting(Protocol):
    """An object for which a deadline can be set."""

    @property
    def stamp(self) -> float:
        """Monotonic time (s) at which the timeout begins. A later stamp postpones the deadline."""

    def expired(self) -> None:
        """Act, because the deadline has passed. `Deadlines` has already removed the deadline."""

    def crash(self) -> None:
        """End this object at once, because `expired` has raised an exception."""


class Deadlines:
    """A set of deadlines, which calls `Waiting.expired` of an object once its stamp is `timeout_ms` old.

    The call is late by at most 1/256 of the timeout, or 5 ms for short timeouts. Adding and removing an
    object take a few dictionary operations. An assignment to `Waiting.stamp` postpones a deadline. When
    the old deadline is due, one check moves the object to its new deadline. So an object costs at most one
    check in each period of `timeout_ms`, however often its stamp changes.

    Args:
        loop: the event loop.
        timeout_ms: the length of every timeout (ms).

    Attributes:
        seconds: the length of every timeout (s).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_ms: int) -> None:
        self._loop = loop
        self.seconds = timeout_ms / 1000
        self._slot_seconds = max(self.seconds / _SLOTS, _SHORTEST)
        self._slot_of: dict[Waiting, int] = {}
        self._slots: dict[int, dict[Waiting, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._faults = Throttled(log)

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(self, waiting: Waiting) -> None:
        """Add a deadline for an object that has none: the object's stamp plus the timeout."""
        slot = int((waiting.stamp + self.seconds) / self._slot_seconds) + 1
        self._slot_of[waiting] = slot
        due = self._slots.get(slot)
        if due is None:
            self._slots[slot] = {waiting: None}
        else:
            due[waiting] = None
        if self._timer is None:
            self._arm()

    def discard(self, waiting: Waiting) -> None:
        """Remove the deadline of an object, if it has a deadline."""
        slot = self._slot_of.pop(waiting, None)
        if slot is not None and (due := self._slots.get(slot)) is not None:
            due.pop(waiting, None)

    def close(self) -> None:
        """Remove all deadlines and cancel the timer."""
        self._slot_of.clear()
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due = min(self._slots) * self._slot_seconds
        self._timer = self._loop.call_later(max(_SOON, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        if WATCHDOG.wants_notice:
            WATCHDOG.notice()
        self._timer = None
        now = time.monotonic()
        past = int(now / self._slot_seconds)
        for slot in sorted(slot for slot in self._slots if slot <= past):
            for waiting in self._slots.pop(slot):
                # The `expired` of another object may have ended this object.
                if self._slot_of.get(waiting) == slot:
                    del self._slot_of[waiting]
                    self._look(waiting, now)
        if self._slots and self._timer is None:
            self._arm()

    def _look(self, waiting: Waiting, now: float) -> None:
        if waiting.stamp + self.seconds > now:
            self.add(waiting)
            return
        try:
            waiting.expired()
        except Exception as error:  # noqa: BLE001 - logged, with the object
            self._faults.error("internal error in %s; everything else goes on", waiting, exc_info=error)
            waiting.crash()
