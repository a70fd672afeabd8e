"""Which addresses are this machine's, and which of them this proxy listens on."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from refractium.contract import SocketAddress

_Ip: TypeAlias = IPv4Address | IPv6Address

_ANY_PORT: Final = 9
"""Connecting a datagram socket sends nothing, so the port does not matter."""
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class OwnAddresses:
    """The listeners' addresses, so that no client is ever sent round in a circle."""

    def __init__(self) -> None:
        self._bound: list[tuple[_Ip, int]] = []
        self._ports: set[int] = set()

    def add(self, sock: socket.socket) -> None:
        """Note a bound socket."""
        host, port = sock.getsockname()[:2]
        self._bound.append((ip_address(host), port))
        self._ports.add(port)

    def discard(self, bound: tuple[Any, ...]) -> None:
        """Forget a socket that was bound to this address."""
        self._bound.remove((ip_address(bound[0]), bound[1]))
        self._ports = {port for _, port in self._bound}

    def __contains__(self, target: SocketAddress) -> bool:
        family, address = target
        if family == socket.AF_UNIX or address[1] not in self._ports:
            return False
        ip = _reached_by(str(address[0]))
        return any(port == address[1] and _takes(bound, ip) for bound, port in self._bound)


def _takes(bound: _Ip, ip: _Ip) -> bool:
    """Whether a listener on `bound` takes what is sent to `ip`; one on ``::`` takes IPv4 as well."""
    if bound.is_unspecified:
        return (bound.version == ip.version or isinstance(ip, IPv4Address)) and _is_local(ip)
    return ip == _reached_by(str(bound))


def _reached_by(host: str) -> _Ip:
    """The address that a connect to `host` reaches: loopback for none, and IPv4 mapped into IPv6 as IPv4."""
    ip = ip_address(host)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified:
        return ip_address("127.0.0.1" if isinstance(ip, IPv4Address) else "::1")
    return ip


def _is_local(ip: _Ip) -> bool:
    """Whether the address is this machine's: what goes there comes from there."""
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
"""Where the kernel takes local ports from. A connect to such a port of this machine on which nobody listens
can meet itself: TCP's simultaneous open, with one socket in both roles."""


def is_self_connected(sock: socket.socket, target: SocketAddress) -> bool:
    """Whether a connected socket is its own peer."""
    family, address = target
    if family == socket.AF_UNIX or address[1] not in EPHEMERAL_PORTS:
        return False
    try:
        own = sock.getsockname()
        return bool(own[1] == address[1] and own == sock.getpeername())
    except OSError:
        # It has been reset already, so there was somebody else.
        return False
