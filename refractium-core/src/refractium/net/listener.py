"""Bound sockets that accept, and go on accepting whatever happens."""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

from refractium.errors import ListenError
from refractium.net.reactor import IN
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from refractium.net.reactor import Reactor

log = logging.getLogger(__name__)

Peer: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"

_BACKLOG: Final = 4096
_ACCEPTS_A_TURN: Final = 64
_PAUSE: Final = 0.1
"""Seconds without accepting after the machine has run out of something: it would fail 200,000 times a
second."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def bind_tcp(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[socket.socket]:
    """Bind and listen on every address that `host` stands for.

    Args:
        loop: looks names up without blocking.
        host: an address or a name; ``::`` takes IPv4 clients as well.
        port: 0 takes a free one, the same for all addresses.

    Raises:
        ListenError: one of them cannot be bound; none is kept then.
    """
    shown = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(shown, f"{host!r} is not an address of this machine ({error})") from error
    sockets: list[socket.socket] = []
    try:
        for family, *_, address in dict.fromkeys(found):
            free_port = sockets[0].getsockname()[1] if sockets and not port else address[1]
            sockets.append(_listen(family, (address[0], free_port, *address[2:])))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(shown, _reason(error)) from error
    return sockets


def _listen(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - positional by its nature
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these two, which saves two system calls a connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use by another program"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "it is not an address of this machine"
    return error.strerror or str(error)


class Listener:
    """Accepts on one bound socket.

    Args:
        reactor: where its events come from.
        sock: bound and listening; the listener's to close.
        accepted: called with each new socket, already non-blocking, and its peer's address.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        accepted: Callable[[socket.socket, Peer], None],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._accepted = accepted
        self._pause: asyncio.TimerHandle | None = None
        self._exhausted = Throttled(log)
        self.address: Peer = sock.getsockname()
        reactor.watch(sock, IN, self._on_event)

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    def _on_event(self, _mask: int) -> None:
        self._accept_some()

    def _accept_some(self) -> bool:
        """Accept what waits, up to a turn's share; whether there may be more."""
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_accepting(error)
                    return False
                # The client was gone before it was accepted (ECONNABORTED and friends): its own affair.
                log.debug("accept: %s", error)
                continue
            sock.setblocking(False)  # noqa: FBT003
            self._accepted(sock, peer)
        return True

    def close(self) -> None:
        """Stop accepting. Clients that had connected already are still taken in."""
        for _ in range(_BACKLOG // _ACCEPTS_A_TURN):
            if not self._accept_some():
                break
        if self._pause is not None:
            self._pause.cancel()
        self._reactor.retire(self._sock)

    def crash(self) -> None:
        """Go on: a listener outlives any fault of what it has accepted."""

    def _pause_accepting(self, error: OSError) -> None:
        self._exhausted.warning("cannot accept: %s; clients wait until there is room again", error.strerror)
        self._reactor.unwatch(self._sock)
        self._pause = self._reactor.loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._reactor.watch(self._sock, IN, self._on_event)
