"""Safe reading of a file that an operator names, whatever is in its place."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_SIZE: Final = 1024 * 1024
"""Bytes of the largest file that is read."""


class NotAFileError(Exception):
    """The path leads to a directory, a FIFO, a device or a socket, or to a file that is too large."""


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file of at most `MAX_FILE_SIZE`.

    The kind of the file is checked after it is opened, so that nobody can replace the file in between. The
    opening does not wait for the writer of a FIFO (O_NONBLOCK, open(2)).

    Args:
        path: path of the file; links are followed.

    Raises:
        NotAFileError: the file is not a regular file, or it is too large.
        OSError: the file cannot be read.
        ValueError: the path has a NUL byte.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotAFileError("not a regular file")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_SIZE + 1)
    finally:
        os.close(fd)
    if len(content) > MAX_FILE_SIZE:
        raise NotAFileError(f"larger than {MAX_FILE_SIZE} bytes")
    return content
