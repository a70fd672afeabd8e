"""Whose file it is: in a folder such as /tmp anybody can make one before we do."""

from __future__ import annotations

import os
import stat
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OWNERS_WORD: Final = "remove it, or write captures to a folder of your own"


def why_not_ours(status: os.stat_result) -> str | None:
    """Return why packets must not be written to a file or FIFO that is there; None where they may be.

    Args:
        status: of the open file, or without following links; a file may be swapped between two looks.
    """
    if status.st_uid not in {0, os.geteuid()}:
        return f"it belongs to another user (uid {status.st_uid}): {_OWNERS_WORD}"
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        return f"it has another name elsewhere (a hard link): {_OWNERS_WORD}"
    if (mode := stat.S_IMODE(status.st_mode)) & _WRITABLE_BY_OTHERS:
        return f"other users may write to it (mode {mode:04o}): chmod go-w, or remove it"
    return None
