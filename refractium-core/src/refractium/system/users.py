"""Users and groups of this machine by name or number, for the identity under which the program runs."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass, field
from typing import Final

_NO_CHANGE: Final = 2**32 - 1
"""The only number that no user or group can have, because it means "leave unchanged" (setresuid(2))."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group for this process.

    Attributes:
        uid: number of the user.
        gid: number of the group.
        user: name of the user, or the number if the user database has no such user.
        groups: numbers of all groups of the user, and `gid`.
    """

    uid: int
    gid: int
    user: str = field(compare=False)
    groups: tuple[int, ...] = field(compare=False)

    @property
    def is_current(self) -> bool:
        """Whether this process already runs as this user and group."""
        return os.getresuid() == (self.uid,) * 3 and os.getresgid() == (self.gid,) * 3


def current_user() -> str:
    """Return the name of this process's user, or the number if the user has no name."""
    entry = _entry_of(os.geteuid())
    return entry.pw_name if entry is not None else str(os.geteuid())


def uid_of(user: str | int) -> int:
    """Return the number of a user.

    Args:
        user: name in the user database, or a number, which needs no entry in the database.

    Raises:
        ValueError: this machine has no such user, the number is out of range, or the user is root.
    """
    if isinstance(user, int):
        uid = _below_the_last(user)
    else:
        try:
            uid = pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError):  # ValueError: a NUL byte
            raise ValueError("this machine has no such user") from None
    if uid == 0:
        raise ValueError("root would keep its rights: name another user, or leave this key out")
    return uid


def gid_of(group: str | int) -> int:
    """Return the number of a group.

    Args:
        group: name in the group database, or a number, which needs no entry in the database.

    Raises:
        ValueError: this machine has no such group, or the number is out of range.
    """
    if isinstance(group, int):
        return _below_the_last(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: a NUL byte
        raise ValueError("this machine has no such group") from None


def identity_of(user: str | int, group: str | int | None = None) -> Identity:
    """Return the identity of a user and a group.

    Args:
        user: name or number of the user.
        group: name or number of the group; None means the user's primary group.

    Raises:
        ValueError: this machine has no such user or group, the user is root, or the primary group is unknown.
    """
    uid = uid_of(user)
    entry = _entry_of(uid)
    if group is not None:
        gid = gid_of(group)
    elif entry is not None:
        gid = entry.pw_gid
    else:
        raise ValueError("this machine does not know the primary group of that user: add a group")
    if entry is None:
        return Identity(uid, gid, str(uid), (gid,))
    return Identity(uid, gid, entry.pw_name, tuple(os.getgrouplist(entry.pw_name, gid)))


def _below_the_last(number: int) -> int:
    if not 0 <= number < _NO_CHANGE:
        raise ValueError(f"the number {number} is not between 0 and {_NO_CHANGE - 1}")
    return number


def _entry_of(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None
