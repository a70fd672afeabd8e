"""Safe reading of a file that an operator names. The reader refuses all but regular files."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_SIZE: Final = 1024 * 1024
"""Size of the largest file that `read_regular` reads (bytes)."""


class NotAFileError(Exception):
    """An error for a path to a directory, a FIFO, a device, a socket, or a file that is too large."""


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file of at most `MAX_FILE_SIZE` bytes.

    The function opens the file and then checks the kind of the open file, so that no other process can
    replace the file in between. The open does not wait for a writer of a FIFO (O_NONBLOCK, open(2)).

    Args:
        path: path of the file; the function follows links.

    Raises:
        NotAFileError: the file is not a regular file, or it is too large.
        OSError: the file cannot be read.
        ValueError: the path contains a NUL byte.
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


def digest(path: Path) -> bytes | None:
    """Return a hash of a file's content, or the text of a read error; None if the file is missing."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return None
    except (OSError, NotAFileError) as error:
        return str(error).encode()
    return hashlib.sha256(content).digest()


def who_else_can_change(path: Path) -> str | None:
    """Return how other users could change a file, and a remedy; None if only this user and root can.

    The function also checks all folders above the file, and the real file to which links lead. In a folder
    with the sticky bit, such as /tmp, nobody can replace the files of other users.

    Raises:
        OSError: the status of a file or folder cannot be read.
    """
    real = path.resolve()
    for one in dict.fromkeys((path, *path.parents, real, *real.parents)):
        status = one.stat()
        if not _is_trusted(status):
            return f"{one} belongs to another user (uid {status.st_uid}): change its owner"
        is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky:
            mode = stat.S_IMODE(status.st_mode)
            return f"other users may write to {one} (mode {mode:04o}): run chmod go-w"
    return None


def is_anothers(path: Path) -> bool:
    """Return whether a file, or a link in its place, is in the hands of another user.

    In a folder such as /tmp, another user can create the file.

    Raises:
        OSError: the status of the file cannot be read.
    """
    status = path.stat()
    return not (_is_trusted(status) and _is_trusted(path.lstat())) or bool(status.st_mode & stat.S_IWOTH)


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}
