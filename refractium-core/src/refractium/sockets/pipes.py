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
"""Bytes that a pipe holds at most, if the kernel allows this size (pipe(7), pipe-user-pages-soft)."""
_KEPT: Final = 64
"""Maximum number of empty pipes that are kept for later use."""
_ENDS: Final = 2
_NEEDED: Final = 0.5
"""Fewest seconds for which a pipe is kept without a borrower. A timer closes the pipe after at most twice
this time."""


class Pipe:
    """A pipe with two non-blocking ends.

    Attributes:
        read: the descriptor of the end to read from.
        write: the descriptor of the end to write to.
        count: the number of bytes in the pipe.
    """

    __slots__ = ("count", "read", "write")

    def __init__(self) -> None:
        self.count = 0
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # a smaller pipe works too
            fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, SIZE)

    def close(self) -> None:
        """Close both ends, and discard the bytes in the pipe."""
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """The lender of pipes.

    If a flow gives back a pipe that still contains bytes, the lender closes the pipe, because no other client
    may receive these bytes.

    Args:
        loop: the event loop, for the timer that closes the kept pipes that no flow borrows.
        descriptors: the lender of the two descriptors of each pipe.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptors: Descriptors) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._free: list[Pipe] = []
        self._unneeded = 0
        self._timer: asyncio.TimerHandle | None = None

    def borrow(self) -> Pipe | None:
        """Return an empty pipe, or None if no descriptors are left or the kernel makes no pipe."""
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
        """Keep a borrowed pipe for the next borrower, or close the pipe."""
        if pipe.count or len(self._free) >= _KEPT:
            self._close(pipe)
            return
        self._free.append(pipe)
        if self._timer is None:
            self._timer = self._loop.call_later(_NEEDED, self._close_unneeded)

    def close(self) -> None:
        """Close all pipes that are not lent."""
        while self._free:
            self._close(self._free.pop())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_unneeded(self) -> None:
        """Close the pipes that no flow has borrowed since the last call."""
        self._timer = None
        for _ in range(self._unneeded):
            self._close(self._free.pop(0))
        self._unneeded = len(self._free)
        if self._free:
            self._timer = self._loop.call_later(_NEEDED, self._close_unneeded)

    def _close(self, pipe: Pipe) -> None:
        pipe.close()
        self._descriptors.lent -= _ENDS
