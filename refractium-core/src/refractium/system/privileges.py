"""Dropping of root's rights: another user and group, no capability, and no way to regain any right.

The kernel keeps some of these rights per thread, so the process drops its rights in two steps.
`forgo_new_privileges` runs before the first thread begins, because new threads and processes inherit its
changes. `become` runs when all ports are bound; the C library changes user and groups in every thread
(nptl(7)).
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from refractium.system.users import Identity

# Numbers from linux/prctl.h and linux/capability.h.
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_SETS: Final = 3
"""Number of capability sets: effective, permitted, inheritable. capget(2) returns the lower 32 bits of all
sets, then the upper 32 bits of all sets."""
_WORD: Final = 0xFFFF_FFFF

_libc: Final = ctypes.CDLL(None, use_errno=True)


def forgo_new_privileges() -> None:
    """Prevent this thread, and all threads and processes that it starts, from gaining rights by execve(2).

    The function sets PR_SET_NO_NEW_PRIVS (prctl(2)). The process keeps its current rights, such as the right
    to bind a port below 1024.

    Raises:
        OSError: the kernel refuses the change.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # With PR_SET_NO_NEW_PRIVS the bounding set grants nothing, but auditors look at this set. A container may
    # withhold the right to change the set (CAP_SETPCAP).
    with suppress(PermissionError):
        _empty_bounding_set()
    effective, permitted, _ = _capabilities()
    # Programs that this process starts inherit no capability. This call also clears the ambient capabilities
    # (capabilities(7)).
    _set_capabilities(effective, permitted, 0)


def become(identity: Identity) -> None:
    """Run as another user and group from now on, without any capability.

    A process that already runs as this user and group keeps its capabilities, such as the capability to bind
    ports below 1024.

    Raises:
        OSError: the kernel refuses the change, or some rights remain. Then the caller must not serve.
    """
    if identity.is_current:
        return
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    _set_capabilities(0, 0, 0)
    if not identity.is_current or any(_capabilities()):
        raise OSError(errno.EPERM, "some rights of root remain")


def _empty_bounding_set() -> None:
    capability = 0
    while True:
        try:
            is_in = _prctl(_PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel knows no more capabilities
            return
        if is_in:
            _prctl(_PR_CAPBSET_DROP, capability)
        capability += 1


def _capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities of this thread, each as a mask."""
    words = (ctypes.c_uint32 * (2 * _SETS))()
    _check(_libc.capget(_header(), words))
    effective, permitted, inheritable = (words[at] | words[at + _SETS] << 32 for at in range(_SETS))
    return effective, permitted, inheritable


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    masks = (effective, permitted, inheritable)
    words = (*(mask & _WORD for mask in masks), *(mask >> 32 for mask in masks))
    _check(_libc.capset(_header(), (ctypes.c_uint32 * len(words))(*words)))


def _header() -> Any:
    """Make the first argument of capget(2) and capset(2): the version, and 0 for this thread."""
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)


def _prctl(option: int, argument: int) -> int:
    return _check(_libc.prctl(option, *map(ctypes.c_ulong, (argument, 0, 0, 0))))


def _check(result: int) -> int:
    """Return the result of a function of the C library.

    Raises:
        OSError: the function failed.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
