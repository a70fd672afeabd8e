"""Which addresses are this machine's, and which of them this proxy listens on."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium.routing import SocketAddress

_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class OwnAddresses:
    """The listeners' addresses, so that no client is ever sent round in a circle."""

    def __init__(self) -> None:
        self._bound: list[tuple[str, int]] = []
        self._ports: set[int] = set()

    def add(self, sock: socket.socket) -> None:
        """Note a bound socket."""
        host, port = sock.getsockname()[:2]
        self._bound.append((host, port))
        self._ports.add(port)

    def __contains__(self, target: SocketAddress) -> bool:
        family, address = target
        if family == socket.AF_UNIX or address[1] not in self._ports:
            return False
        host = str(address[0])
        return any(
            port == address[1] and (host == bound or (_is_any(bound) and _is_local(family, host)))
            for bound, port in self._bound
        )


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _is_local(family: socket.AddressFamily, host: str) -> bool:
    """Whether the address is this machine's: only then can a socket be bound to it."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


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
    return bool(sock.getsockname()[:2] == address[:2])
