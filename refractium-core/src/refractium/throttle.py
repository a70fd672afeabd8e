"""Log lines that a flood must not multiply."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY: Final = 10.0
_BURST: Final = 10
"""Seconds over which the lines of an `Allowance` may be spread in any way."""


class Throttled:
    """Logs lines of one kind at once when they are rare, else one in ten seconds with a count.

    Args:
        log: where to.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = float("-inf")
        self._held_back = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message % args`, or count it."""
        self._write(logging.WARNING, message, args, None)

    def error(self, message: str, *args: object, exc_info: BaseException) -> None:
        """Log `message % args` with the traceback of an exception, or count it."""
        self._write(logging.ERROR, message, args, exc_info)

    def _write(
        self, level: int, message: str, args: tuple[object, ...], exc_info: BaseException | None
    ) -> None:
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return
        more = f" ({self._held_back} more since the last such line)" if self._held_back else ""
        self._log.log(level, message + more, *args, exc_info=exc_info)
        self._next = now + _EVERY
        self._held_back = 0


class Allowance:
    """Allows so many lines a second, on average over ten seconds (a token bucket).

    Args:
        per_second: how many lines.
        clock: tells the time (s).

    Attributes:
        per_second: the same; it may be changed.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._filled_at = clock()
        self._room = float(per_second * _BURST)

    def refill(self) -> None:
        """Take the time into account that has passed since the last call."""
        now = self._clock()
        room = self._room + (now - self._filled_at) * self.per_second
        self._room = min(room, self.per_second * _BURST)
        self._filled_at = now

    def take(self) -> bool:
        """Take one line, if there is one to be had until the next `refill`."""
        if self._room < 1:
            return False
        self._room -= 1
        return True
