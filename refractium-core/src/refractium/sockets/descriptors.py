"""The number of descriptors that are left for clients (RLIMIT_NOFILE, getrlimit(2))."""

from __future__ import annotations

import errno
import os
import resource
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


LOCAL_ERRORS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}
)
"""Errors of a machine that has run out of a resource; such an error says nothing about a backend."""


A_CLIENT: Final = 2
"""Number of descriptors for one client: the client's socket and the backend's socket."""
SHARE_OF_SESSIONS: Final = 3
"""All UDP sessions of a process together may hold at most its descriptor limit, divided by this number."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a machine that has run out of descriptors, or of memory for sockets."""
_OPEN: Final = "/proc/self/fd"
_TRUSTED: Final = 0.05
"""Minimum time (s) for which a count that found too few descriptors stays valid."""
_SHARE: Final = 20
"""A count stays valid for this multiple of the time that it took. A count may be slow (`_number_open`)."""


class Descriptors:
    """The lender of the descriptors that the process can still open.

    A client borrows both of its descriptors at the accept. If clients borrowed one descriptor at a time,
    waiting clients could use up all descriptors, and no client could reach a backend any more.

    Args:
        unused: a function that returns the number of descriptors that are lent but not open, for example
            because a client has no socket to a backend yet.

    Attributes:
        lent: the number of descriptors that are lent now.
    """

    def __init__(self, unused: Callable[[], int]) -> None:
        self._unused = unused
        self._trusted_until = float("-inf")
        self._lendable = 0
        self._others = 0
        self.lent = 0

    @property
    def limit(self) -> int:
        """The number of descriptors that this process may open (RLIMIT_NOFILE)."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def left(self, wanted: int) -> int:
        """Return the number of descriptors to lend now; count anew if the number is below `wanted`."""
        left = self._lendable - self.lent
        if left < wanted and monotonic() > self._trusted_until:
            self._count()
            left = self._lendable - self.lent
        return max(0, left)

    def ran_out(self) -> None:
        """Lend no descriptor until the next count.

        The kernel has run out of descriptors, although the last count found some.
        """
        self._lendable = self.lent

    def _count(self) -> None:
        began = monotonic()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Keep descriptors back, because status requests, health checks and files need some at times.
        spare = min(64, limit // 20)
        unused = self._unused()
        number = _number_open(limit)
        if number is None:
            # All descriptors below the first free descriptor are open. The number of open descriptors that
            # are not lent stays about the same.
            lent = self.lent - unused
            self._others = max(self._others, _first_free(limit) - lent)
            number = lent + self._others
        self._lendable = self.lent + limit - spare - number - unused
        now = monotonic()
        self._trusted_until = now + max(_TRUSTED, _SHARE * (now - began))


def _number_open(limit: int) -> int | None:
    """Return the number of open descriptors of this process; None if /proc does not show the number."""
    try:
        # Since Linux 6.2, stat(2) gives the number of open descriptors as the size of /proc/self/fd. Older
        # kernels need a listing, which takes 1 us per descriptor.
        return os.stat(_OPEN).st_size or len(os.listdir(_OPEN)) - 1  # noqa: PTH116, PTH208 - paths cost more
    except OSError as error:
        return limit if error.errno in EXHAUSTED else None


def _first_free(limit: int) -> int:
    """Return the lowest descriptor that is not open, which the kernel gives to the next open(2)."""
    try:
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return limit
    os.close(fd)
    return fd
