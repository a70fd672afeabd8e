"""How many descriptors there are left for clients (RLIMIT_NOFILE, getrlimit(2))."""

from __future__ import annotations

import os
import resource
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

A_CLIENT: Final = 2
"""What a client takes: its own descriptor and its backend's."""
_OPEN: Final = "/proc/self/fd"
_COUNTED: Final = 0.05
"""Seconds that a count is trusted for when it has found too few."""


class Descriptors:
    """Lends descriptors, and no more than there are.

    A client is lent both of its own when it is accepted. Were it only one, all that become free would go to
    clients that wait, and none of them could reach a backend any more.

    Args:
        unused: how many are lent and not open, such as those of clients whose backend is still dialled.

    Attributes:
        lent: how many are lent.
    """

    def __init__(self, unused: Callable[[], int]) -> None:
        self._unused = unused
        self._counted = float("-inf")
        self._lendable = 0
        self.lent = 0

    def left(self, wanted: int) -> int:
        """How many may be lent now; counted anew where they seem to be fewer than wanted."""
        left = self._lendable - self.lent
        if left < wanted and monotonic() - self._counted > _COUNTED:
            self._count()
            left = self._lendable - self.lent
        return max(0, left)

    def ran_out(self) -> None:
        """Somebody else has taken some: the kernel had none where there should have been."""
        self._lendable = self.lent

    def _count(self) -> None:
        self._counted = monotonic()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # What else is opened from time to time (status, health checks, files) is to be had even then.
        spare = min(64, limit // 20)
        others = _number_open(limit) - (self.lent - self._unused())
        self._lendable = limit - spare - others


def _number_open(limit: int) -> int:
    """How many descriptors this process has open."""
    try:
        # Linux tells it as the directory's size since 6.2; before, one has to look.
        return os.stat(_OPEN).st_size or len(os.listdir(_OPEN))  # noqa: PTH116, PTH208 - paths would cost more
    except FileNotFoundError:
        return 0  # without /proc, accept and socket say when there are none left
    except OSError:
        return limit
