"""A file to which lines are appended, and which another program may move away."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from pathlib import Path

log = logging.getLogger(__name__)

STDOUT = "-"
"""The path that stands for stdout."""

_STDOUT_FD = 1
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags that refuse a symbolic link, and that do not wait if another user has put a FIFO at the path."""
_CALM = 60.0
"""When this time (s) has passed without a failure, the log reports the next failure."""


class LineFile:
    """A file to which whole lines are appended. `write` passes each line to the kernel at once.

    If the disk has room for only a part of a line, the next `write` first writes the rest of this line.

    Several processes may append to the same file.

    Args:
        path: the path of the file, or ``-`` for stdout. A new file gets mode 0600.

    Raises:
        OSError: the file cannot be opened, or another user owns it or may write to it.
    """

    def __init__(self, path: str) -> None:
        self._path = None if path == STDOUT else Path(path)
        self._fd = _STDOUT_FD if self._path is None else _open(self._path)
        self._rest = b""
        self._quiet_until = float("-inf")

    def write(self, line: bytes) -> None:
        """Append a line. If the file accepts no byte of the line, the line is lost.

        The log reports only the first of several failures.
        """
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
            # If the disk had room for only a part of a line, the next call writes the rest first.
            self._rest = left if len(left) < len(line) else left[: -len(line)]

    def _reopen_if_moved(self) -> None:
        if self._path is None or _is_at(self._path, self._fd):
            return
        fd = _open(self._path)
        os.close(self._fd)
        self._fd, self._rest = fd, b""


def _open(path: Path) -> int:
    fd = os.open(path, _FLAGS, 0o600)
    stat_result = os.fstat(fd)
    is_ours = (
        stat_result.st_uid in {0, os.geteuid()}
        and stat_result.st_nlink == 1
        and not stat_result.st_mode & 0o022
    )
    if not stat.S_ISCHR(stat_result.st_mode) and not (
        stat.S_ISREG(stat_result.st_mode) and is_ours
    ):  # only root can create a device, so a device needs no check
        os.close(fd)
        raise OSError(errno.EPERM, "not a regular file, or controlled by other users: remove it", str(path))
    return fd


def _is_at(path: Path, fd: int) -> bool:
    """Return whether the file at a path is the open file of a descriptor."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False
