"""TCP listeners: bound sockets that accept clients again after any fault."""

from __future__ import annotations

import errno
import logging
import os
from socket import SOCK_STREAM, SocketType
from typing import TYPE_CHECKING, Final, cast

from refractium.addresses.address import join_host_port
from refractium.sockets.bind import BACKLOG
from refractium.sockets.closing import is_reset_on_close, reset_on_close
from refractium.sockets.descriptors import A_CLIENT, EXHAUSTED
from refractium.sockets.watching import Watching
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from refractium.addresses.address import Peer
    from refractium.proxy.snapshot import Snapshot
    from refractium.routing import Router
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor

log = logging.getLogger(__name__)


_socket = cast("type[socket.socket]", SocketType)
"""The C base class of `socket.socket`. The class `socket.socket` itself costs 3 us more per connection and
adds nothing that this module uses."""
_ACCEPTS_A_TURN: Final = 64


class TcpListener:
    """A bound TCP socket that accepts clients.

    Args:
        reactor: the source of events.
        descriptors: the lender of descriptors. The listener borrows `A_CLIENT` descriptors for each client;
            the owner of the accepted socket gives these descriptors back.
        sock: a bound, listening socket, which the listener closes.
        accepted: a function that the listener calls with each new socket, the peer's address and the
            snapshot. The socket is non-blocking, and closing it resets the connection.
        name: the listener's name, by which the service finds the listener's routes.
        snapshot: the routes and timeouts for new clients.
    """

    def __init__(
        self,
        reactor: Reactor,
        descriptors: Descriptors,
        sock: socket.socket,
        accepted: Callable[[socket.socket, Peer, Snapshot], None],
        name: str,
        snapshot: Snapshot,
    ) -> None:
        self._reactor = reactor
        self._descriptors = descriptors
        self._sock = sock
        self._accepted = accepted
        self.name = name
        self.snapshot = snapshot
        self._accept: Callable[[], tuple[int, Peer]] = sock._accept  # type: ignore[attr-defined]  # noqa: SLF001
        self._family = sock.family.value
        self._resets = is_reset_on_close(sock)
        self._exhausted = Throttled(log)
        self._faults = Throttled(log)
        self.address: Peer = sock.getsockname()
        self._watching = Watching(reactor, sock, self._on_event)

    @property
    def router(self) -> Router:
        """The router for new clients."""
        return self.snapshot.router

    @property
    def paused(self) -> str:
        """The reason why the listener accepts no client now; empty while the listener accepts clients."""
        return self._watching.why_paused

    def __repr__(self) -> str:
        return f"<TcpListener {join_host_port(self.address[0], self.address[1])}>"

    def _on_event(self, _mask: int) -> None:
        self._accept_some()

    def _accept_some(self) -> bool:
        """Accept at most `_ACCEPTS_A_TURN` waiting clients; return whether more may be waiting."""
        found: list[tuple[socket.socket, Peer]] = []
        may_be_more = self._take(found)
        self._descriptors.lent += A_CLIENT * len(found)
        for sock, peer in found:
            try:
                self._accepted(sock, peer, self.snapshot)
            except Exception as error:  # noqa: BLE001 - a fault with one client must not affect others
                self._faults.error("%s failed with a client from %s", self, peer[0], exc_info=error)
                self._descriptors.lent -= A_CLIENT
                self._reactor.retire(sock)
        return may_be_more

    def _take(self, found: list[tuple[socket.socket, Peer]]) -> bool:
        room = self._descriptors.left(A_CLIENT) // A_CLIENT
        if not room:
            self._pause_accepting(os.strerror(errno.EMFILE))
            return False
        for _ in range(min(_ACCEPTS_A_TURN, room)):
            try:
                fd, peer = self._accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._descriptors.ran_out()
                    self._pause_accepting(error.strerror)
                    return False
                # For example ECONNABORTED, because the client left before the accept: nothing to do.
                log.debug("accept: %s", error)
                continue
            sock = _socket(self._family, SOCK_STREAM, 0, fd)
            try:
                sock.setblocking(False)  # noqa: FBT003
                if not self._resets:
                    reset_on_close(sock)
            except OSError as error:
                log.debug("accept: %s", error)
                sock.close()
                continue
            found.append((sock, peer))
        return True

    def close(self) -> None:
        """Accept the clients that have already connected, as far as descriptors are left; then close."""
        self._watching.stop()
        for _ in range(BACKLOG // _ACCEPTS_A_TURN):
            if not self._accept_some():
                break
        self._reactor.retire(self._sock)

    def crash(self) -> None:
        """Pause, then accept clients again: no fault ends a listener."""
        self._watching.rest()

    def _pause_accepting(self, why: str | None) -> None:
        self._exhausted.warning("cannot accept: %s; clients wait until there is room again", why)
        self._watching.pause(why or "no room")
