"""Limits on the rate of log lines, so that a flood of events does not flood the log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY: Final = 10.0
"""Shortest time (s) between two lines of a `Throttled`."""
_BURST: Final = 10
"""Seconds over which an `Allowance` averages: a burst may use the lines of all these seconds at once."""


class Throttled:
    """A logger of lines of one kind: at most one line in ten seconds, with the number of omitted lines.

    Args:
        log: the logger that writes the lines.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = float("-inf")
        self._held_back = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message % args` as a warning; within ten seconds of the last line, only count the message."""
        self._write(logging.WARNING, message, args, None)

    def error(self, message: str, *args: object, exc_info: BaseException) -> None:
        """Log `message % args` as an error with the traceback of an exception.

        Within ten seconds of the last line, only count the message.
        """
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
    """A token bucket that allows a number of lines per second, on average over ten seconds.

    Args:
        per_second: the number of lines allowed per second.
        clock: a function that returns the time (s).

    Attributes:
        per_second: the number of lines allowed per second; the caller may change it at any time.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._filled_at = clock()
        self._room = float(per_second * _BURST)

    def refill(self) -> None:
        """Add the lines for the time that has passed since the last call."""
        now = self._clock()
        room = self._room + (now - self._filled_at) * self.per_second
        self._room = min(room, self.per_second * _BURST)
        self._filled_at = now

    def take(self) -> bool:
        """Remove one line from the bucket. Return False if the bucket is empty; only `refill` adds lines."""
        if self._room < 1:
            return False
        self._room -= 1
        return True
