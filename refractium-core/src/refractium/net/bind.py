"""From a host and a port to bound sockets."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.errors import ListenError

if TYPE_CHECKING:
    import asyncio

BACKLOG: Final = 4096
"""Clients that may wait to be accepted; the kernel may allow fewer (net.core.somaxconn)."""
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes that a UDP listener asks the kernel to queue; the kernel may give less (net.core.rmem_max)."""


async def bind(
    loop: asyncio.AbstractEventLoop, transport: Transport, host: str, port: int
) -> list[socket.socket]:
    """Bind on every address that `host` stands for; TCP sockets listen.

    Args:
        loop: looks names up without blocking.
        transport: what the sockets are for.
        host: an address or a name; ``::`` takes IPv4 clients as well.
        port: 0 takes a free one, the same for all addresses.

    Raises:
        ListenError: one of them cannot be bound; none is kept then.
    """
    shown = f"{transport}://[{host}]:{port}" if ":" in host else f"{transport}://{host}:{port}"
    kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
    try:
        found = await loop.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(shown, f"{host!r} is not an address of this machine ({error})") from error
    sockets: list[socket.socket] = []
    try:
        for family, *_, address in dict.fromkeys(found):
            free_port = sockets[0].getsockname()[1] if sockets and not port else address[1]
            sockets.append(_open(kind, family, (address[0], free_port, *address[2:])))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(shown, _reason(error)) from error
    return sockets


def prepare(sock: socket.socket) -> None:
    """Give a bound socket the options of a listener."""
    sock.setblocking(False)  # noqa: FBT003 - positional by its nature
    if sock.type == socket.SOCK_STREAM:
        # Accepted sockets inherit these three, which saves three system calls a connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    else:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def _open(
    kind: socket.SocketKind, family: socket.AddressFamily, address: tuple[object, ...]
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            # Not for UDP, where it would let a second instance take the port silently.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
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
