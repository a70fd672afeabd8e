"""One epoll for every data socket, inside the event loop.

A socket of its own in the event loop costs about 10 us per connection, and uvloop stops reading a socket for
good at the first POLLERR, losing what came before a reset. So the loop watches one descriptor, the epoll's.
"""

from __future__ import annotations

import logging
import select
import time
from typing import TYPE_CHECKING, Final, Protocol

from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

log = logging.getLogger(__name__)

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERROR: Final = select.EPOLLERR
RDHUP: Final = select.EPOLLRDHUP
"""The peer has ended its side: what is still to be read is all there is."""
HANGUP: Final = RDHUP | select.EPOLLHUP | ERROR
"""The peer has ended its side, or the socket has failed: read on until recv says which."""
URGENT: Final = select.EPOLLPRI
"""A byte sent out of band: recv stops short of it although there is more (tcp(7), SO_OOBINLINE)."""
EDGE: Final = select.EPOLLET | RDHUP | URGENT

_EVENTS_A_TURN: Final = 256
_TURN: Final = 0.002
"""Seconds after which the loop has its turn although there are events. A trip through it costs as much as a
request, and 32 busy connections have five events a batch: one after each four batches took 2% more of the
processor."""


class Owner(Protocol):
    """Whose bound methods the handlers are: a connection, a listener, a session."""

    def crash(self) -> None:
        """A handler has raised: a connection or session ends at once, a listener rests and goes on."""


class Reactor:
    """Calls handlers with event masks, one batch a turn.

    A handler is a bound method of an `Owner`. A fault in one ends its owner and nothing else.

    Args:
        loop: the running event loop.

    Attributes:
        loop: that event loop.
        turned: monotonic time (s) at which the present or last batch of events began: what handlers of events
            may take for `now`, at less cost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._again: dict[Callable[[], None], None] = {}
        self._soon: list[Callable[[], None]] = []
        self._is_turning = False
        self._retired: list[socket.socket] = []
        self._faults = Throttled(log)
        self._second_faults = Throttled(log)
        self.turned = time.monotonic()
        loop.add_reader(self._epoll.fileno(), self._turn)

    @property
    def now(self) -> float:
        """Monotonic time (s)."""
        return time.monotonic()

    def watch(self, sock: socket.socket, events: int, handler: Callable[[int], None]) -> bool:
        """Have `handler` called with the events of a socket.

        Returns:
            Whether it was watched before, and then only the handler has changed: events that came until now
            do not come again. At the first watch, those that are there already count as new.
        """
        fd = sock.fileno()
        watched = fd in self._handlers
        if not watched:
            try:
                self._epoll.register(fd, events)
            except FileExistsError:  # the kernel failed to take it out
                self._epoll.modify(fd, events)
        self._handlers[fd] = handler
        return watched

    def modify(self, sock: socket.socket, events: int) -> None:
        """Watch for other events; those that are there already count as new."""
        self._epoll.modify(sock.fileno(), events)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching a socket, if it is watched."""
        fd = sock.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def retire(self, sock: socket.socket) -> None:
        """Stop watching a socket, and close it when the batch is done, which takes it out of the epoll.

        Not before, so that an event still in the batch cannot reach a new socket of the same number. Where
        another process may have the same socket open, `unwatch` comes first.
        """
        self._handlers.pop(sock.fileno(), None)
        if not self._retired and not self._is_turning:
            self.loop.call_soon(self._close_retired)
        self._retired.append(sock)

    def soon(self, handler: Callable[[], None]) -> None:
        """Call a handler once, after the events of this batch; outside of one, in a moment."""
        if not self._soon and not self._is_turning:
            self.loop.call_soon(self._run_soon)
        self._soon.append(handler)

    def again(self, resume: Callable[[], None]) -> None:
        """Go on with something in the next turn, once: it has had its share of this one."""
        if not self._again:
            self.loop.call_soon(self._resume)
        self._again[resume] = None

    def later(self, seconds: float, handler: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a handler once, after some time."""
        return self.loop.call_later(seconds, self._call, handler)

    def close(self) -> None:
        """Stop turning. What is still registered is its owners' to close."""
        self.loop.remove_reader(self._epoll.fileno())
        self._close_retired()
        self._epoll.close()

    def _turn(self) -> None:
        self._is_turning = True
        handlers = self._handlers
        self.turned = time.monotonic()
        end = self.turned + _TURN
        while True:
            events = self._epoll.poll(0, _EVENTS_A_TURN)
            if not events:
                break
            for fd, mask in events:
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler(mask)
                    except Exception as error:  # noqa: BLE001 - logged there, with its owner
                        self._crash(handler, error)
            if self._soon:
                self._run_soon()
            if self._retired:
                self._close_retired()
            self.turned = time.monotonic()
            # What is to go on in the next turn has let others go first, and does not wait for more of them.
            if self._again or self.turned > end:
                break
        self._is_turning = False

    def _run_soon(self) -> None:
        while self._soon:
            due, self._soon = self._soon, []
            for handler in due:
                try:
                    handler()
                except Exception as error:  # noqa: BLE001 - as in a turn
                    self._crash(handler, error)

    def _resume(self) -> None:
        due, self._again = self._again, {}
        for resume in due:
            self._call(resume)

    def _call(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except Exception as error:  # noqa: BLE001 - as above
            self._crash(handler, error)

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for sock in retired:
            try:
                sock.close()
            except OSError as error:  # it is closed all the same (close(2))
                log.debug("close: %s", error)

    def _crash(self, handler: Callable[..., None], error: Exception) -> None:
        owner: Owner = handler.__self__  # type: ignore[attr-defined]
        self._faults.error("internal error in %s; everything else goes on", owner, exc_info=error)
        try:
            owner.crash()
        except Exception as second:  # noqa: BLE001 - logged
            self._second_faults.error("%s could not be ended after an internal error", owner, exc_info=second)
