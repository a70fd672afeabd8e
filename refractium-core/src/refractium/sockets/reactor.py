"""One epoll for every data socket, inside the event loop.

To watch each socket in the event loop would cost about 10 us per connection. Besides, uvloop never reads a
socket again after the first POLLERR, and so loses the bytes that came before a reset. So the event loop only
watches the descriptor of the epoll.
"""

from __future__ import annotations

import logging
import select
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from refractium.guard.watchdog import WATCHDOG
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
"""An event: the peer has ended its side, so the unread bytes are the last bytes."""
HANGUP: Final = RDHUP | select.EPOLLHUP | ERROR
"""Events: the peer has ended its side, or the socket has failed. Read on until recv shows which is true."""
URGENT: Final = select.EPOLLPRI
"""An event: an out-of-band byte has arrived. recv stops before that byte, although more bytes can be read
(tcp(7), SO_OOBINLINE)."""
EDGE: Final = select.EPOLLET | RDHUP | URGENT

_EVENTS_A_TURN: Final = 256
_TURN: Final = 0.002
"""Seconds after which the event loop gets its turn, even if the epoll still has events.

One turn of the event loop costs as much as one request. With 32 busy connections a batch has five events.
When the event loop had its turn after every four batches instead of after this time, the proxy took 2% more
processor time.
"""


class Owner(Protocol):
    """An object whose bound methods are handlers, for example a connection, a listener or a session."""

    def crash(self) -> None:
        """End a connection or session, or pause a listener, because a handler has raised an exception."""


class Reactor:
    """One epoll, and the handlers of its sockets. The reactor passes event masks to the handlers, in batches.

    A handler is a bound method of an `Owner`. The reactor reports a fault in a handler to the
    handler's owner (`Owner.crash`). The fault affects no other object.

    Args:
        loop: the running event loop.

    Attributes:
        loop: the running event loop.
        turned: monotonic time (s) at which the current or last batch of events began. Event handlers may use
            this time in place of `now`, at lower cost.
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
        self.turned = monotonic()
        WATCHDOG.follow(self)
        loop.add_reader(self._epoll.fileno(), self._turn)

    @property
    def now(self) -> float:
        """The monotonic time (s)."""
        return monotonic()

    def watch(self, sock: socket.socket, events: int, handler: Callable[[int], None]) -> bool:
        """Watch a socket, and call `handler` with its events from now on.

        Returns:
            Whether the socket was watched before. If so, only the handler changes, and the epoll does not
            repeat earlier events. If not, the handler also receives events that are already pending.
        """
        fd = sock.fileno()
        watched = fd in self._handlers
        if not watched:
            try:
                self._epoll.register(fd, events)
            except FileExistsError:  # the kernel failed to remove the socket earlier
                self._epoll.modify(fd, events)
        self._handlers[fd] = handler
        return watched

    def modify(self, sock: socket.socket, events: int) -> None:
        """Watch a socket for other events; the handler also receives events that are already pending."""
        self._epoll.modify(sock.fileno(), events)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching a socket, if it is watched."""
        fd = sock.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def retire(self, sock: socket.socket) -> None:
        """Stop watching a socket, and close it after the batch. The close removes the socket from the epoll.

        A close during the batch would free the descriptor's number, and an event still in the batch could
        reach a new socket with that number. Call `unwatch` first if another process may have the socket open.
        """
        self._handlers.pop(sock.fileno(), None)
        if not self._retired and not self._is_turning:
            self.loop.call_soon(self._close_retired)
        self._retired.append(sock)

    def soon(self, handler: Callable[[], None]) -> None:
        """Call a handler once, after the events of this batch; outside of a batch, in the next turn."""
        if not self._soon and not self._is_turning:
            self.loop.call_soon(self._run_soon)
        self._soon.append(handler)

    def again(self, resume: Callable[[], None]) -> None:
        """Call `resume` once in the next turn, for an object that has used its share of this turn."""
        if not self._again:
            self.loop.call_soon(self._resume)
        self._again[resume] = None

    def later(self, seconds: float, handler: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a handler once, after the given number of seconds."""
        return self.loop.call_later(seconds, self._call, handler)

    def close(self) -> None:
        """Stop watching all sockets, and close the epoll. The owners of the sockets must close them."""
        self.loop.remove_reader(self._epoll.fileno())
        self._close_retired()
        self._epoll.close()

    def _turn(self) -> None:
        if WATCHDOG.wants_notice:
            WATCHDOG.notice()
        self._is_turning = True
        handlers = self._handlers
        self.turned = monotonic()
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
                    except Exception as error:  # noqa: BLE001 - `_crash` logs the error with its owner
                        self._crash(handler, error)
            if self._soon:
                self._run_soon()
            if self._retired:
                self._close_retired()
            self.turned = monotonic()
            # If functions wait in `_again`, the event loop calls them before the next batch.
            if self._again or self.turned > end:
                break
        self._is_turning = False

    def _run_soon(self) -> None:
        while self._soon:
            due, self._soon = self._soon, []
            for handler in due:
                try:
                    handler()
                except Exception as error:  # noqa: BLE001 - `_crash` logs the error with the owner
                    self._crash(handler, error)

    def _resume(self) -> None:
        due, self._again = self._again, {}
        for resume in due:
            self._call(resume)

    def _call(self, handler: Callable[[], None]) -> None:
        if WATCHDOG.wants_notice:
            WATCHDOG.notice()
        try:
            handler()
        except Exception as error:  # noqa: BLE001 - `_crash` logs the error with this owner
            self._crash(handler, error)

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for sock in retired:
            try:
                sock.close()
            except OSError as error:  # the socket is closed nevertheless (close(2))
                log.debug("close: %s", error)

    def _crash(self, handler: Callable[..., None], error: Exception) -> None:
        owner: Owner = handler.__self__  # type: ignore[attr-defined]
        self._faults.error("internal error in %s; everything else goes on", owner, exc_info=error)
        try:
            owner.crash()
        except Exception as second:  # noqa: BLE001 - logged
            self._second_faults.error("%s could not be ended after an internal error", owner, exc_info=second)
