"""From a host and a port to bound sockets."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.errors import ListenError
from refractium.sockets import names
from refractium.sockets.closing import reset_on_close

if TYPE_CHECKING:
    from refractium.sockets.names import Found


UNSENT: Final = 131_072
"""Bytes that the kernel takes for a client beyond what is on its way (TCP_NOTSENT_LOWAT, tcp(7)). By itself
it takes megabytes for one that reads nothing."""


BACKLOG: Final = 4096
"""Clients that may wait to be accepted; the kernel may allow fewer (net.core.somaxconn)."""
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes that a UDP listener asks the kernel to queue; the kernel may give less (net.core.rmem_max)."""


async def addresses_of(
    transport: Transport,
    host: str,
    port: int,
    timeout: float | None = None,  # noqa: ASYNC109
) -> Found:
    """Return the addresses that `host` stands for, which `bind` takes.

    Args:
        transport: of the listener.
        host: an address or a name.
        port: of the listener.
        timeout: how long a name server may take (s); by default as long as resolv.conf(5) says.

    Raises:
        ListenError: the name cannot be resolved, or not in time.
    """
    shown = _shown(transport, host, port)
    try:
        return await names.addresses(host, f"listener {shown}", timeout)
    except OSError as error:
        raise ListenError(shown, f"{host!r} is not an address of this machine ({error})") from error


def bind(transport: Transport, host: str, port: int, found: Found) -> list[socket.socket]:
    """Bind on every address of a host; TCP sockets listen.

    Args:
        transport: what the sockets are for.
        host: an address or a name, for errors; ``::`` takes IPv4 clients as well.
        port: 0 takes a free one, the same for all addresses.
        found: the addresses of the host (`addresses_of`).

    Raises:
        ListenError: one of them cannot be bound; none is kept then.
    """
    kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
    sockets: list[socket.socket] = []
    try:
        for family, address in names.at(port, found):
            free_port = sockets[0].getsockname()[1] if sockets and not port else address[1]
            sockets.append(_open(kind, family, (address[0], free_port, *address[2:])))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(_shown(transport, host, port), _reason(error), error.errno or 0) from error
    return sockets


def _shown(transport: Transport, host: str, port: int) -> str:
    return f"{transport}://[{host}]:{port}" if ":" in host else f"{transport}://{host}:{port}"


def prepare(sock: socket.socket) -> None:
    """Give a bound socket the options of a listener."""
    sock.setblocking(False)  # noqa: FBT003 - positional by its nature
    if sock.type == socket.SOCK_STREAM:
        # Accepted sockets inherit these four, which saves four system calls a connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    else:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def copies(sock: socket.socket, count: int) -> list[socket.socket | None]:
    """Sockets on the address of a bound one, so that several processes can serve there.

    The kernel spreads clients over them, and sends what comes from one address and port to the same one
    (SO_REUSEPORT, socket(7)). The first was bound without that option, so that a port which another program
    has, or another instance of this one, is refused.

    Args:
        sock: has the options of a listener (`prepare`).
        count: how many there are to be, with that one.

    Returns:
        As many. Where there can be only the one, it is there again and again, for TCP; only the first can
        have a UDP socket, whose answers would not come to the right process else.
    """
    found: list[socket.socket | None] = [sock]
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(found) < count:
            found.append(_open(sock.type, sock.family, sock.getsockname(), like=sock))
    except OSError:
        # It was handed down by another user, who alone may do so, or has a port that needs rights lost since.
        for one in found[1:]:
            one.close()  # type: ignore[union-attr]
        is_tcp = sock.type == socket.SOCK_STREAM
        return [sock, *(sock.dup() if is_tcp else None for _ in range(count - 1))]
    return found


def _open(
    kind: int, family: int, address: tuple[object, ...], like: socket.socket | None = None
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            # One that was handed down may be for IPv6 alone.
            only = 0 if like is None else like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        if like is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            # Accepted sockets inherit it: without it those in TIME_WAIT keep the port from the next start.
            # Not for UDP, where it would let a second instance take the port silently.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
            # Inherited as well. Not by those of a socket that was handed down, which others may accept from
            # at another time.
            reset_on_close(sock)
        prepare(sock)
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
