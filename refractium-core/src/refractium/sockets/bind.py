"""Bound sockets for a host and a port."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.errors import ListenError
from refractium.sockets import names
from refractium.sockets.closing import reset_on_close

if TYPE_CHECKING:
    from refractium.sockets.names import Found


UNSENT: Final = 131_072
"""Maximum number of unsent bytes that the kernel buffers for a client (TCP_NOTSENT_LOWAT, tcp(7)). Without
this option, the kernel buffers megabytes for a client that reads nothing."""
BACKLOG: Final = 4096
"""Maximum number of clients that wait for an accept; the kernel may allow fewer (net.core.somaxconn)."""
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes of the receive buffer that a UDP listener asks for; the kernel may grant less (net.core.rmem_max)."""


async def addresses_of(
    transport: Transport,
    host: str,
    port: int,
    timeout: float | None = None,  # noqa: ASYNC109
) -> Found:
    """Return the addresses of a host in the form that `bind` accepts.

    Args:
        transport: the listener's transport.
        host: an IP address or a name.
        port: the listener's port.
        timeout: the maximum time to resolve a name (s); by default, the limits of the system's resolver apply
            (resolv.conf(5)).

    Raises:
        ListenError: the lookup of the name failed or took too long.
    """
    shown = _shown(transport, host, port)
    try:
        return await names.addresses(host, f"listener {shown}", timeout)
    except OSError as error:
        reason = error.strerror or error
        raise ListenError(shown, f"'{host}' is not an address of this machine: {reason}") from error


def bind(transport: Transport, host: str, port: int, found: Found) -> list[socket.socket]:
    """Bind one socket to each address of a host; TCP sockets also listen.

    Args:
        transport: the transport of the sockets.
        host: an IP address or a name, for error messages. A socket on ``::`` also receives from IPv4 clients.
        port: the port. With 0, the kernel chooses one free port, and all addresses use this port.
        found: the addresses of the host (`addresses_of`).

    Raises:
        ListenError: an address cannot be bound. Then the function closes the sockets that it has bound.
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
    return f"{transport}://{join_host_port(host, port)}"


def prepare(sock: socket.socket) -> None:
    """Set the options of a listener on a bound socket."""
    sock.setblocking(False)  # noqa: FBT003 - positional by its nature
    if sock.type == socket.SOCK_STREAM:
        # Accepted sockets inherit these four options, which saves four system calls per connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    else:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def copies(sock: socket.socket, count: int) -> list[socket.socket | None]:
    """Return sockets for the address of a bound socket, so that several processes can serve that address.

    The kernel distributes the clients over the sockets. All traffic from one address and port goes to one
    socket (SO_REUSEPORT, socket(7)). `sock` was bound without that option, so that the kernel refuses a port
    that another program, or another instance of this program, already uses.

    Args:
        sock: a bound socket with the options of a listener (`prepare`).
        count: the number of sockets to return, `sock` included.

    Returns:
        Exactly `count` entries. If `sock` must stay the only socket on its address, the entries are those of
        `duplicates`.
    """
    found: list[socket.socket | None] = [sock]
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(found) < count:
            found.append(_open(sock.type, sock.family, sock.getsockname(), like=sock))
    except OSError:
        # Another user may have opened `sock`, and only that user may bind this address again. Or the port of
        # `sock` may need rights that this process has given up.
        for one in found[1:]:
            one.close()  # type: ignore[union-attr]
        return duplicates(sock, count)
    return found


def duplicates(sock: socket.socket, count: int) -> list[socket.socket | None]:
    """Return a socket and its duplicates, so that several processes can serve from the queue of one socket.

    Args:
        sock: a bound socket with the options of a listener (`prepare`).
        count: the number of entries to return.

    Returns:
        Exactly `count` entries. The first entry is `sock`. Every other TCP entry is a duplicate of `sock`.
        Every other UDP entry is None, because a datagram could reach the wrong process through a duplicate.
    """
    is_tcp = sock.type == socket.SOCK_STREAM
    return [sock, *(sock.dup() if is_tcp else None for _ in range(count - 1))]


def _open(
    kind: int, family: int, address: tuple[object, ...], like: socket.socket | None = None
) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            # A socket that was handed down may be for IPv6 only.
            only = 0 if like is None else like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        if like is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            # Accepted sockets inherit this option. Without the option, sockets in TIME_WAIT block the port at
            # the next start. UDP sockets do not have this option, because a second instance could then bind
            # the port unnoticed.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
            # Accepted sockets inherit this option as well. A socket that was handed down must not have this
            # option, because another program may accept from that socket at another time.
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
