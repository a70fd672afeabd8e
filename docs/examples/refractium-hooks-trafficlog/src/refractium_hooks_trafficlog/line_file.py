"""A file that lines are appended to, and that somebody else may move away."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from pathlib import Path

log = logging.getLogger(__name__)

STDOUT = "-"
"""What stands for stdout instead of a path."""

_STDOUT_FD = 1
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
"""Neither a link is followed nor the reader of a FIFO waited for that somebody else has put there."""
_CALM = 60.0
"""Seconds without a failure after which the next one is news."""


class LineFile:
    """Appends whole lines. Each is with the kernel when `write` returns, or lost.

    Several processes may append to the same file.

    Args:
        path: of the file, or ``-`` for stdout. A file is made with mode 0600.

    Raises:
        OSError: it cannot be opened, or another user may have made it.
    """

    def __init__(self, path: str) -> None:
        self._path = None if path == STDOUT else Path(path)
        self._fd = _STDOUT_FD if self._path is None else _open(self._path)
        self._rest = b""
        self._quiet_until = float("-inf")

    def write(self, line: bytes) -> None:
        """Append a line. If that fails it is lost, and the log says so, but not for every line."""
        try:
            self._reopen_if_moved()
            self._append(line)
        except OSError as error:
            if time.monotonic() >= self._quiet_until:
                log.warning("%s: lines are lost: %s", self._path or "stdout", error.strerror)
            self._quiet_until = time.monotonic() + _CALM

    def close(self) -> None:
        """Close the file; stdout stays open."""
        if self._path is not None:
            os.close(self._fd)

    def _append(self, line: bytes) -> None:
        left = self._rest + line
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        finally:
            # A line that the disk had only some room for is completed ahead of the next one.
            self._rest = left if len(left) < len(line) else left[: -len(line)]

    def _reopen_if_moved(self) -> None:
        if self._path is None or _is_at(self._path, self._fd):
            return
        fd = _open(self._path)
        os.close(self._fd)
        self._fd, self._rest = fd, b""


def _open(path: Path) -> int:
    fd = os.open(path, _FLAGS, 0o600)
    status = os.fstat(fd)
    is_ours = status.st_uid in {0, os.geteuid()} and status.st_nlink == 1 and not status.st_mode & 0o022
    if not stat.S_ISCHR(status.st_mode) and not (
        stat.S_ISREG(status.st_mode) and is_ours
    ):  # a device is root's
        os.close(fd)
        raise OSError(errno.EPERM, "it is no file of ours that only we may write to", str(path))
    return fd


def _is_at(path: Path, fd: int) -> bool:
    """Whether a path still is that of an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False
