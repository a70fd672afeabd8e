"""Log lines that a flood must not multiply."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging

_EVERY: Final = 10.0


class Throttled:
    """Logs warnings of one kind at once when they are rare, else one in ten seconds with a count.

    Args:
        log: where to.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = float("-inf")
        self._held_back = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message % args`, or count it."""
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return
        more = f" ({self._held_back} more since the last such line)" if self._held_back else ""
        self._log.warning(message + more, *args)
        self._next = now + _EVERY
        self._held_back = 0
