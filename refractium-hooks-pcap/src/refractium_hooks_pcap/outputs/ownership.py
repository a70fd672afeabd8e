"""Checks that no other user controls a file: in /tmp, another user can create the file first."""

from __future__ import annotations

import os
import stat
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OWNERS_WORD: Final = "remove it, or write captures to a folder of your own"


def why_not_ours(stat_result: os.stat_result) -> str | None:
    """Return the reason why a hook must not write to an existing file or FIFO; None if the hook may write.

    Args:
        stat_result: the status of the open file (fstat), or of a path (lstat). After a check of the path,
            another user could still replace the file before the hook opens the file.
    """
    if stat_result.st_uid not in {0, os.geteuid()}:
        return f"it belongs to another user (uid {stat_result.st_uid}): {_OWNERS_WORD}"
    if stat.S_ISREG(stat_result.st_mode) and stat_result.st_nlink > 1:
        return f"it has another name too (a hard link): {_OWNERS_WORD}"
    if (mode := stat.S_IMODE(stat_result.st_mode)) & _WRITABLE_BY_OTHERS:
        return f"other users may write to it (mode {mode:04o}): run chmod go-w, or remove it"
    return None
