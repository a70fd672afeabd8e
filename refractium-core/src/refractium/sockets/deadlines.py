"""Timeouts of one length: slots in time, and a single timer for the next of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

_SLOTS: Final = 256
"""Into how many slots a timeout is divided: it may be late by one of them."""
_SHORTEST: Final = 0.005
"""Seconds that a slot is long at least, so that neighbours expire together."""
_SOON: Final = 0.001
"""Seconds, for a timer that is due already: a loop with timers of 0 s turns without sleeping."""


class Waiting(Protocol):
    """What a deadline can be set for."""

    stamp: float
    """Monotonic time (s) from which the timeout runs; moving it on postpones the deadline."""

    def expired(self) -> None:
        """The deadline has passed; it is not set any more."""

    def crash(self) -> None:
        """End at once; `expired` has raised what it must not."""


class Deadlines:
    """Calls `Waiting.expired` of everything whose stamp is `timeout_ms` old, late by 1/256 of that at most.

    Adding and removing are a few dictionary operations; postponing is an assignment to `Waiting.stamp`. Being
    due too early (because the stamp has moved) costs one look per timeout and thing.

    Args:
        loop: the event loop.
        timeout_ms: the length, the same for all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_ms: int) -> None:
        self._loop = loop
        self._timeout = timeout_ms / 1000
        self._slot_seconds = max(self._timeout / _SLOTS, _SHORTEST)
        self._slot_of: dict[Waiting, int] = {}
        self._slots: dict[int, dict[Waiting, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._faults = Throttled(log)

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(self, waiting: Waiting) -> None:
        """Set the deadline of something that has none: its stamp and the timeout."""
        slot = int((waiting.stamp + self._timeout) / self._slot_seconds) + 1
        self._slot_of[waiting] = slot
        due = self._slots.get(slot)
        if due is None:
            self._slots[slot] = {waiting: None}
        else:
            due[waiting] = None
        if self._timer is None:
            self._arm()

    def discard(self, waiting: Waiting) -> None:
        """Take the deadline away, if there is one."""
        slot = self._slot_of.pop(waiting, None)
        if slot is not None and (due := self._slots.get(slot)) is not None:
            due.pop(waiting, None)

    def close(self) -> None:
        """Forget everything."""
        self._slot_of.clear()
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due = min(self._slots) * self._slot_seconds
        self._timer = self._loop.call_later(max(_SOON, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        past = int(now / self._slot_seconds)
        for slot in sorted(slot for slot in self._slots if slot <= past):
            for waiting in self._slots.pop(slot):
                # Another one's `expired` may have ended it.
                if self._slot_of.get(waiting) == slot:
                    del self._slot_of[waiting]
                    self._look(waiting, now)
        if self._slots and self._timer is None:
            self._arm()

    def _look(self, waiting: Waiting, now: float) -> None:
        if waiting.stamp + self._timeout > now:
            self.add(waiting)
            return
        try:
            waiting.expired()
        except Exception as error:  # noqa: BLE001 - as of the reactor
            self._faults.error("internal error in %s; everything else goes on", waiting, exc_info=error)
            waiting.crash()
