"""Users and groups of this machine, as an operator names them: who the program is to run as."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass, field
from typing import Final

_NO_CHANGE: Final = 2**32 - 1
"""The one number that no user or group has: it means "leave as it is" (setresuid(2))."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group to run as.

    Attributes:
        uid: the number of the user.
        gid: the number of the group.
        user: the user's name, or the number where the user database has no name for it.
        groups: the numbers of all groups of that user, and `gid`.
    """

    uid: int
    gid: int
    user: str = field(compare=False)
    groups: tuple[int, ...] = field(compare=False)

    @property
    def is_current(self) -> bool:
        """Whether this process runs as that user and group already."""
        return os.getresuid() == (self.uid,) * 3 and os.getresgid() == (self.gid,) * 3


def current_user() -> str:
    """Return the name of the user that this process runs as, or the number where there is no name."""
    entry = _entry_of(os.geteuid())
    return entry.pw_name if entry is not None else str(os.geteuid())


def uid_of(user: str | int) -> int:
    """Return the number of a user.

    Args:
        user: a name of the user database, or a number, which needs no entry there.

    Raises:
        ValueError: this machine has no such user, or it is root.
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
    """Return the number of a group, which is given by name or number.

    Raises:
        ValueError: this machine has no such group.
    """
    if isinstance(group, int):
        return _below_the_last(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: a NUL byte
        raise ValueError("this machine has no such group") from None


def identity_of(user: str | int, group: str | int | None = None) -> Identity:
    """Return the identity that a user and a group stand for.

    Args:
        user: a name or a number.
        group: the same; None takes the user's primary group.

    Raises:
        ValueError: this machine has no such user or group, or the user has no primary group.
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
