"""Lines on their way to stderr, which may be a pipe that nobody reads or a disk that is full."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GATHER: Final = 0.02
"""Seconds for which lines are gathered, so that a busy proxy writes often enough and not for every line."""
_MAX_HELD: Final = 4 * 1024 * 1024
"""Characters that wait to be written; what comes on top is lost, and counted."""


class LineWriter:
    """Writes lines in a thread of its own, so that who logs never waits for who reads.

    Args:
        fd: where to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # One thread appends and the other takes off, each by atomic operations.
        self._texts: deque[str] = deque()
        self._put = 0
        self._taken = 0
        self._lost = 0
        self._is_asleep = True
        self._work = threading.Semaphore(0)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str, lines: int = 1) -> None:
        """Write lines soon, each of which has its end with it.

        Args:
            text: the lines.
            lines: how many there are.
        """
        if self._put - self._taken > _MAX_HELD:
            self._lost += lines
            return
        self._put += len(text)
        self._texts.append(text)
        if self._is_asleep:
            self._is_asleep = False
            self._work.release()

    def lose(self, lines: int) -> None:
        """Count lines that could not be made."""
        self._lost += lines

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
            if self._is_closing and not self._texts:
                return

    def _write_all(self) -> None:
        taken: list[bytes] = []
        size = 0
        while self._texts:
            text = self._texts.popleft()
            size += len(text)
            taken += _encoded(text).splitlines(keepends=True)
        if self._lost:
            lost, self._lost = self._lost, 0
            taken.append(_encoded(f"({lost} lines of the log were lost)\n"))
        with suppress(OSError):  # a full disk or a closed stderr costs lines, never a connection
            for piece in _pieces(taken):
                data = memoryview(piece)
                while data:
                    data = data[os.write(self._fd, data) :]
        self._taken += size


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes at once, so that those of several workers do not mix (pipe(7))."""
    piece: list[bytes] = []
    room = select.PIPE_BUF
    for line in lines:
        if len(line) > room and piece:
            yield b"".join(piece)
            piece, room = [], select.PIPE_BUF
        piece.append(line)
        room -= len(line)
    yield b"".join(piece)
