"""Log lines that a flood must not multiply."""

from __future__ import annotations

import logging
import time
from typing import Final

_EVERY: Final = 10.0


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
