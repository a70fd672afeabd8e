"""A dial, which tries the backends of a pool in turn, until one is connected or no backend is left.

After twice the connect timeout, a dial tries no further backend.
"""

from __future__ import annotations

import errno
import logging
import os
from socket import (
    AF_UNIX,
    IPPROTO_TCP,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_OOBINLINE,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_QUICKACK,
    SocketType,
)
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

from refractium.addresses.address import Address
from refractium.addresses.local import is_self_connected
from refractium.sockets.descriptors import EXHAUSTED, LOCAL_ERRORS
from refractium.sockets.reactor import EDGE, IN, OUT
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio
    import socket

    from refractium.addresses.local import OwnAddresses
    from refractium.backends.backend import Backend
    from refractium.contract import SocketAddress
    from refractium.proxy.counters import TcpCounters
    from refractium.proxy.snapshot import Snapshot
    from refractium.routing import Pool
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor

log = logging.getLogger(__name__)

_BUDGET: Final = 2
"""Number of connect timeouts after which a dial tries no further backend."""
_RETRY: Final = 0.01
"""Seconds until a dial repeats an attempt for which the epoll reports no event: a unix socket had a full
queue, or this machine had no resources for a socket."""


new_socket = cast("type[socket.socket]", SocketType)
"""The C base class of `socket.socket`. The class `socket.socket` itself costs 3 us more per connection."""
_STREAM: Final = SOCK_STREAM | SOCK_NONBLOCK


class Caller(Protocol):
    """The object to which a dial reports its result."""

    def reached(self, backend: Backend, sock: socket.socket, sent: int) -> None:
        """Use the connected socket. The dial has sent the first `sent` bytes of its argument `first`.

        The dial has added 1 to ``backend.state.active``; the caller subtracts 1 when the connection ends.
        """

    def unreachable(self) -> None:
        """Continue without a backend, because all backends have failed or the time of the dial is over."""

    def crash(self) -> None:
        """End the connection at once after an internal error."""


class Dialing:
    """The objects that all dials of an engine share.

    Args:
        reactor: the source of events.
        descriptors: the object that counts descriptors. A dial tells this object when the machine has run out
            of descriptors or of memory for sockets.
        own: the listeners' addresses, to which no dial connects.
        counters: the counters of TCP, among them the number of skipped targets (`TcpCounters.loops`).

    Attributes:
        failures: the rate-limited log of backends that could not be reached.
    """

    def __init__(
        self, reactor: Reactor, descriptors: Descriptors, own: OwnAddresses, counters: TcpCounters
    ) -> None:
        self.reactor = reactor
        self.descriptors = descriptors
        self.own = own
        self.counters = counters
        self.failures = Throttled(log)


class Dial:
    """A series of attempts to connect one client to one backend of a pool.

    If a target cannot be reached within the connect timeout, the dial tries the next target. The dial tries
    no failed target again. After the dial has sent bytes to a backend, it tries no further target.

    Args:
        shared: the reactor, the descriptors and the counters.
        snapshot: the timeouts.
        pool: the backends to try.
        first: the bytes to send with the connect: the PROXY header, and the client's bytes read so far.
        caller: the object that receives the result, once.
        client: the client's IP address, by which a balancer may choose a backend.

    Attributes:
        stamp: monotonic time (s) at which the current attempt began.
        loops: the number of targets skipped because they are this proxy's own listeners.
    """

    __slots__ = (
        "_attempts",
        "_began",
        "_caller",
        "_current",
        "_first",
        "_is_cancelled",
        "_keeps_alive",
        "_retry",
        "_shared",
        "_snapshot",
        "_sock",
        "loops",
        "stamp",
    )

    def __init__(
        self,
        shared: Dialing,
        snapshot: Snapshot,
        pool: Pool,
        first: bytes,
        caller: Caller,
        client: str,
    ) -> None:
        self._shared = shared
        self._snapshot = snapshot
        self._first = first
        self._caller = caller
        self._began = self.stamp = monotonic()
        self._attempts = pool.targets(client)
        self._keeps_alive = snapshot.keeps_alive[pool.idle_timeout_ms]
        self._current: tuple[Backend, SocketAddress] | None = None
        self._sock: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._is_cancelled = False
        self.loops = 0

    def __repr__(self) -> str:
        return f"<Dial {self._current}>"

    @property
    def has_socket(self) -> bool:
        """Whether the dial has a socket; a dial that waits to repeat an attempt has no socket."""
        return self._sock is not None

    def begin(self) -> None:
        """Try one target after the other, until a target is connected or an attempt is in progress."""
        if self._is_cancelled:
            return
        shared = self._shared
        for backend, target in self._attempts:
            now = monotonic()
            if now - self._began >= _BUDGET * self._snapshot.settings.connect_timeout_ms / 1000:
                break
            if target in shared.own:
                self.loops += 1
                shared.counters.loops += 1
                continue
            self._current = backend, target
            backend.state.active += 1
            self.stamp = now
            if self._connect():
                return
        self._caller.unreachable()

    def cancel(self) -> None:
        """Stop dialling, without a call to the caller."""
        self._is_cancelled = True
        self._let_go()

    def expired(self) -> None:
        """Give up on the current target, because the connect timeout has passed, and try the next target."""
        # A wait for resources of this machine, or for a unix socket's queue, says nothing about the backend.
        self._give_up_on_current(errno.ETIMEDOUT, is_local=self._retry is not None)
        self.begin()

    def crash(self) -> None:
        """End the connection at once after an internal error."""
        self._caller.crash()

    def _connect(self) -> bool:
        """Start connecting to the current target; return whether the attempt is in progress or successful."""
        assert self._current is not None  # noqa: S101 - `begin` has set it
        family, address = self._current[1]
        try:
            sock = self._sock = new_socket(family, _STREAM)
            set_option = sock.setsockopt
            set_option(SOL_SOCKET, SO_OOBINLINE, 1)  # unix sockets have urgent bytes too, since Linux 5.15
            if family != AF_UNIX:
                if self._keeps_alive:
                    set_option(SOL_SOCKET, SO_KEEPALIVE, 1)
                if self._first:
                    # The handshake's last segment then carries the first bytes, so the backend wakes up once.
                    set_option(IPPROTO_TCP, TCP_QUICKACK, 0)
            code = sock.connect_ex(address)
        except OSError as error:
            code = error.errno or errno.EINVAL
        if code and code != errno.EINPROGRESS:
            if code in EXHAUSTED or (code == errno.EAGAIN and family == AF_UNIX):
                if code in EXHAUSTED:
                    self._shared.descriptors.ran_out()
                self._wait_for_room()
                return True
            self._give_up_on_current(code)
            return False
        # With a backend on this machine the handshake ends before connect returns: send the bytes at once.
        return self._send_first(is_connected=code == 0)

    def _send_first(self, *, is_connected: bool) -> bool:
        """Send the first bytes; return whether the target is connected or the attempt is in progress."""
        assert self._sock is not None  # noqa: S101 - an attempt is under way
        sent = 0
        if self._first:
            try:
                sent = self._sock.send(self._first)
            except BlockingIOError:
                pass
            except OSError as error:
                self._give_up_on_current(error.errno or 0)
                return False
        if not sent and not is_connected:
            self._shared.reactor.watch(self._sock, IN | OUT | EDGE, self._on_event)
            self._snapshot.connecting.add(self)
            return True
        return self._arrive(sent)

    def _on_event(self, mask: int) -> None:
        assert self._sock is not None  # noqa: S101 - the reactor watches this socket
        code = self._sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if code:
            self._give_up_on_current(code)
            self.begin()
        elif mask & OUT:
            self._snapshot.connecting.discard(self)
            if not self._send_first(is_connected=True):
                self.begin()

    def _arrive(self, sent: int) -> bool:
        assert self._sock is not None  # noqa: S101
        assert self._current is not None  # noqa: S101
        backend, target = self._current
        if is_self_connected(self._sock, target):
            self._give_up_on_current(errno.ECONNREFUSED)
            return False
        if backend.state.awaits_client:
            backend.state.client_reached()
        sock, self._sock = self._sock, None
        self._current = None
        self._caller.reached(backend, sock, sent)
        return True

    def _wait_for_room(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._snapshot.connecting.add(self)
        self._retry = self._shared.reactor.later(_RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._snapshot.connecting.discard(self)
        if not self._connect():
            self.begin()

    def _give_up_on_current(self, code: int, *, is_local: bool = False) -> None:
        assert self._current is not None  # noqa: S101 - an attempt is under way
        backend, target = self._current
        self._let_go()
        reason = os.strerror(code)
        self._shared.failures.warning(
            "backend %s cannot be reached at %s: %s", backend.address, Address.of(target[1]), reason
        )
        # While the backend has further addresses to try, a failed address says nothing about the backend.
        is_last = backend.socket_addresses[-1:] == (target,)
        if is_last and not is_local and code not in LOCAL_ERRORS:
            backend.state.client_failed(f"it cannot be reached: {reason}")

    def _let_go(self) -> None:
        if self._current is not None:
            self._current[0].state.active -= 1
            self._current = None
        self._snapshot.connecting.discard(self)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._sock is not None:
            self._shared.reactor.retire(self._sock)
            self._sock = None
