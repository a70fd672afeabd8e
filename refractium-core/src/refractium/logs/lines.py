"""The writer of log lines. Stderr may be a pipe that no process reads, or a file on a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GATHER: Final = 0.02
"""Seconds for which a writer gathers lines, so that a busy proxy does not write once for every line."""
_MAX_HELD: Final = 4 * 1024 * 1024
"""Maximum number of characters that wait for a write. The writer counts further lines as lost."""
_AT_ONCE: Final = 262_144
"""Number of characters after which the writer adds no further text to a write."""
_RETRY: Final = 1.0
"""Seconds between two attempts to write, for example to a full disk."""
_LAST_RETRY: Final = 0.05
"""Seconds between two attempts while the writer is being closed."""
_NOBODY_READS: Final = (errno.EPIPE, errno.EBADF)
"""Errors after which another attempt is useless: the reader has gone, or the descriptor is closed."""


class LineWriter:
    """A writer with a thread of its own, so that a caller never waits for the reader of the lines.

    If a write fails within a line, the writer later writes the rest of that line. Meanwhile, other lines
    wait, as they do for a pipe that no process reads. The writer counts the lines that exceed its memory
    limit, and writes this count once, as soon as a write succeeds again.

    Several processes may write to one file, pipe or socket. For each write, a process locks the file, pipe or
    socket (POSIX record locks, fcntl(2)) until the last line is complete.

    Args:
        fd: file descriptor to write to.
        tell_lost: function that makes the line with the count of lost lines.
        gather: seconds for which the writer gathers lines before a write.
    """

    def __init__(self, fd: int, tell_lost: Callable[[int], str], gather: float = GATHER) -> None:
        self._fd = fd
        self._tell_lost = tell_lost
        self._gather = gather
        self._is_shared = _can_be_shared(fd)
        self._lock = threading.Lock()
        self._texts: deque[str] = deque()
        self._held = 0
        self._lost = 0
        self._is_asleep = True
        self._work = threading.Semaphore(0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Queue lines for the thread.

        Args:
            text: one or more lines, each with its line end.
        """
        # The thread does not run if the writer is closed or if this process is a fork. Then write at once.
        if not self._thread.is_alive():
            self._put(_encoded(text), retries=False)
            return
        with self._lock:
            if self._held > _MAX_HELD:
                self._lost += text.count("\n")
                return
            self._held += len(text)
            self._texts.append(text)
            if not self._is_asleep:
                return
            self._is_asleep = False
        self._work.release()

    def lose(self, lines: int) -> None:
        """Add `lines` to the count of lost lines, because the caller could not format them."""
        with self._lock:
            self._lost += lines

    def close(self, timeout: float) -> None:
        """Write the waiting lines, for at most `timeout` seconds."""
        self._closing.set()
        self._work.release()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._work.acquire()
            if not self._closing.is_set():
                time.sleep(self._gather)
            self._write_all()
            if self._closing.is_set() and not self._texts:
                return

    def _write_all(self) -> None:
        while text := self._take():
            lost = self._put(_encoded(text))
            with self._lock:
                self._held -= len(text)
                self._lost += lost
        # The next call of this method writes the count of lines that are lost from here on.
        lost = self._lost
        if lost and not self._put(_encoded(self._tell_lost(lost))):
            with self._lock:
                self._lost -= lost

    def _take(self) -> str:
        """Remove and return the next texts. If no text waits, the thread sleeps until the next `write`."""
        taken = []
        size = 0
        with self._lock:
            while self._texts and size < _AT_ONCE:
                taken.append(self._texts.popleft())
                size += len(taken[-1])
            self._is_asleep = not taken
        return "".join(taken)

    def _put(self, data: bytes, *, retries: bool = True) -> int:
        """Write whole lines.

        Args:
            data: whole lines.
            retries: whether to wait while the descriptor accepts no bytes.

        Returns:
            Count of lost lines.
        """
        rest = memoryview(data)
        with self._locked():
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except OSError as error:
                    if not retries or error.errno in _NOBODY_READS:
                        return bytes(rest).count(b"\n")
                    self._wait(error.errno)
        return 0

    def _wait(self, error: int | None) -> None:
        """Wait before another attempt to write."""
        if error == errno.EAGAIN:  # another process has made the pipe non-blocking (fcntl(2), O_NONBLOCK)
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll(_RETRY * 1000)
        elif self._closing.wait(_RETRY):
            time.sleep(_LAST_RETRY)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Prevent other processes from writing within a line of this process while the block runs."""
        if not self._is_shared:
            yield
            return
        with suppress(OSError):  # the file system may have no locks
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _can_be_shared(fd: int) -> bool:
    """Return whether other processes of this program may write to the same file, pipe or socket.

    A device is not shared: any process of the machine could hold the lock of ``/dev/null``.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
