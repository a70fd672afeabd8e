"""Pipes through which the kernel moves bytes from socket to socket, without a copy into this process."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from refractium.sockets.descriptors import Descriptors

SIZE: Final = 1024 * 1024
"""What a pipe holds at the most (bytes), where the user may have as much (pipe(7), pipe-user-pages-soft)."""
_KEPT: Final = 64
"""Empty pipes that are kept for the next."""
_ENDS: Final = 2
_NEEDED: Final = 0.5
"""Seconds after which a pipe that nobody has borrowed is not kept any longer."""


class Pipe:
    """One pipe; its ends do not block.

    Attributes:
        read: descriptor of the end that bytes come out of.
        write: of the one that they go into.
        count: how many bytes it holds.
    """

    __slots__ = ("count", "read", "write")

    def __init__(self) -> None:
        self.count = 0
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # a smaller one does as well
            fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, SIZE)

    def close(self) -> None:
        """With whatever it holds."""
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """Lends pipes. One that comes back with bytes in it is closed: they are one client's, nobody else's.

    Args:
        loop: the event loop, for the time after which pipes that nobody has needed are closed.
        descriptors: of which a pipe takes two.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptors: Descriptors) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._free: list[Pipe] = []
        self._unneeded = 0
        self._timer: asyncio.TimerHandle | None = None

    def borrow(self) -> Pipe | None:
        """An empty pipe, or none on a machine that has no more descriptors."""
        if self._free:
            pipe = self._free.pop()
            self._unneeded = min(self._unneeded, len(self._free))
            return pipe
        if self._descriptors.left(_ENDS) < _ENDS:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._descriptors.lent += _ENDS
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take back a pipe."""
        if pipe.count or len(self._free) >= _KEPT:
            self._close(pipe)
            return
        self._free.append(pipe)
        if self._timer is None:
            self._timer = self._loop.call_later(_NEEDED, self._close_unneeded)

    def close(self) -> None:
        """Close those that nobody has."""
        while self._free:
            self._close(self._free.pop())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_unneeded(self) -> None:
        """Close as many as have lain here since the last time."""
        self._timer = None
        for _ in range(self._unneeded):
            self._close(self._free.pop(0))
        self._unneeded = len(self._free)
        if self._free:
            self._timer = self._loop.call_later(_NEEDED, self._close_unneeded)

    def _close(self, pipe: Pipe) -> None:
        pipe.close()
        self._descriptors.lent -= _ENDS
