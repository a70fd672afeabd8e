"""Lines on their way to stderr, which may be a pipe that nobody reads or a disk that is full."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_GATHER: Final = 0.02
"""Seconds for which lines are gathered, so that a busy proxy writes often enough and not for every line."""
_MAX_HELD: Final = 4 * 1024 * 1024
"""Characters that wait to be written; what comes on top is lost, and counted."""
_ABOUT: Final = 256
"""Characters that a line has which is yet to be made."""


class LineWriter:
    """Writes lines in a thread of its own, so that who logs never waits for who reads.

    Args:
        fd: where to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # One thread appends and the other takes off, each by atomic operations.
        self._lines: deque[tuple[Callable[[Any], str], Any, int]] = deque()
        self._put = 0
        self._taken = 0
        self._lost = 0
        self._is_asleep = True
        self._work = threading.Semaphore(0)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Write a line, which has its end with it, soon."""
        self._append(str, line, len(line))

    def write_later(self, make: Callable[[T], str], what: T) -> None:
        """Write a line that the thread makes."""
        self._append(make, what, _ABOUT)

    def _append(self, make: Callable[[Any], str], what: Any, size: int) -> None:
        if self._put - self._taken > _MAX_HELD:
            self._lost += 1
            return
        self._put += size
        self._lines.append((make, what, size))
        if self._is_asleep:
            self._is_asleep = False
            self._work.release()

    def close(self, timeout: float) -> None:
        """Write what is there, for so many seconds at the most."""
        self._is_closing = True
        self._work.release()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._work.acquire()
            if not self._is_closing:
                time.sleep(_GATHER)
            # Set before the lines are taken: what comes after that wakes this thread again.
            self._is_asleep = True
            self._write_all()
            if self._is_closing and not self._lines:
                return

    def _write_all(self) -> None:
        taken, size = [], 0
        while self._lines:
            make, what, about = self._lines.popleft()
            size += about
            try:
                taken.append(make(what))
            except Exception:  # noqa: BLE001 - one line is not worth the log
                self._lost += 1
        text = "".join(taken)
        if self._lost:
            lost, self._lost = self._lost, 0
            text += f"({lost} lines of the log were lost)\n"
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        with suppress(OSError):  # a full disk or a closed stderr costs lines, never a connection
            while data:
                data = data[os.write(self._fd, data) :]
        self._taken += size
