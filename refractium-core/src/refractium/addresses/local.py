"""Addresses of this machine, and the addresses on which this proxy listens."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.addresses.address import reached_by

if TYPE_CHECKING:
    from refractium.contract import SocketAddress

_Ip: TypeAlias = IPv4Address | IPv6Address

_ANY_PORT: Final = 9
"""Port for a connect of a datagram socket. Any port is suitable, because this connect sends nothing."""
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class OwnAddresses:
    """The addresses of this proxy's listeners, to which the proxy must never connect a client."""

    def __init__(self) -> None:
        self._bound: list[tuple[_Ip, int]] = []
        self._ports: set[int] = set()

    def add(self, sock: socket.socket) -> None:
        """Add the address of a bound socket."""
        host, port = sock.getsockname()[:2]
        self._bound.append((ip_address(host), port))
        self._ports.add(port)

    def discard(self, bound: tuple[Any, ...]) -> None:
        """Remove the address to which a socket was bound."""
        self._bound.remove((ip_address(bound[0]), bound[1]))
        self._ports = {port for _, port in self._bound}

    def __contains__(self, target: SocketAddress) -> bool:
        family, address = target
        if family == socket.AF_UNIX or address[1] not in self._ports:
            return False
        ip = reached_by(ip_address(address[0]))
        return any(port == address[1] and _takes(bound, ip) for bound, port in self._bound)


def _takes(bound: _Ip, ip: _Ip) -> bool:
    """Return whether a listener on `bound` accepts connections to `ip`.

    A listener on ``::`` accepts connections to IPv4 addresses, too.
    """
    if bound.is_unspecified:
        return (bound.version == ip.version or isinstance(ip, IPv4Address)) and _is_local(ip)
    return ip == reached_by(bound)


def _is_local(ip: _Ip) -> bool:
    """Return whether `ip` is an address of this machine.

    If so, a socket that is connected to `ip` also has `ip` as its own address.
    """
    if ip.is_loopback:
        return True
    family = socket.AF_INET if isinstance(ip, IPv4Address) else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(ip), _ANY_PORT))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == str(ip))


def _ephemeral_ports() -> range:
    try:
        first, last = _PORT_RANGE.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return range(1024, 65536)
    return range(int(first), int(last) + 1)


EPHEMERAL_PORTS: Final = _ephemeral_ports()
"""The range from which the kernel chooses local ports. If no socket listens on such a port of this machine, a
connect to this port can connect a socket to itself. This is the simultaneous open of TCP, with one socket in
both roles."""


def is_self_connected(sock: socket.socket, target: SocketAddress) -> bool:
    """Return whether a connected socket is its own peer."""
    family, address = target
    if family == socket.AF_UNIX or address[1] not in EPHEMERAL_PORTS:
        return False
    try:
        own = sock.getsockname()
        return bool(own[1] == address[1] and own == sock.getpeername())
    except OSError:
        # The connection has already been reset, so the peer was another socket.
        return False
