"""How many descriptors there are left for clients (RLIMIT_NOFILE, getrlimit(2))."""

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
"""What this machine says when it has run out of something; none of it is about the backend."""


A_CLIENT: Final = 2
"""What a client takes: its own descriptor and its backend's."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the machine says when it has run out of descriptors or memory for sockets."""
_OPEN: Final = "/proc/self/fd"
_TRUSTED: Final = 0.05
"""Seconds that a count is trusted for when it has found too few, at least."""
_SHARE: Final = 20
"""It is trusted for as many times what it took, which may be long (see `_number_open`)."""


class Descriptors:
    """Lends descriptors, and no more than there are.

    A client is lent both of its own when it is accepted. Were it only one, all that become free would go to
    clients that wait, and none of them could reach a backend any more.

    Args:
        unused: how many are lent and not open, such as those of clients that are not known yet.

    Attributes:
        lent: how many are lent.
    """

    def __init__(self, unused: Callable[[], int]) -> None:
        self._unused = unused
        self._trusted_until = float("-inf")
        self._lendable = 0
        self._others = 0
        self.lent = 0

    @property
    def limit(self) -> int:
        """The number of descriptors that this process may have open (RLIMIT_NOFILE)."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def left(self, wanted: int) -> int:
        """How many may be lent now; counted anew where they seem to be fewer than wanted."""
        left = self._lendable - self.lent
        if left < wanted and monotonic() > self._trusted_until:
            self._count()
            left = self._lendable - self.lent
        return max(0, left)

    def ran_out(self) -> None:
        """Somebody else has taken some: the kernel had none where there should have been."""
        self._lendable = self.lent

    def _count(self) -> None:
        began = monotonic()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # What else is opened from time to time (status, health checks, files) is to be had even then.
        spare = min(64, limit // 20)
        unused = self._unused()
        number = _number_open(limit)
        if number is None:
            # All descriptors below the first free one are open. Those that are not lent stay about as many.
            lent = self.lent - unused
            self._others = max(self._others, _first_free(limit) - lent)
            number = lent + self._others
        self._lendable = self.lent + limit - spare - number - unused
        now = monotonic()
        self._trusted_until = now + max(_TRUSTED, _SHARE * (now - began))


def _number_open(limit: int) -> int | None:
    """Return how many descriptors this process has open; None without /proc, which tells it."""
    try:
        # Linux tells it as the directory's size since 6.2. Before, one has to look, at 1 us for each.
        return os.stat(_OPEN).st_size or len(os.listdir(_OPEN)) - 1  # noqa: PTH116, PTH208 - paths cost more
    except OSError as error:
        return limit if error.errno in EXHAUSTED else None


def _first_free(limit: int) -> int:
    """Return the lowest descriptor that is not open: the kernel gives it to the next open(2)."""
    try:
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return limit
    os.close(fd)
    return fd
