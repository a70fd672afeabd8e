"""One backend: the address as it was configured, and the socket addresses it stands for now."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from refractium.address import Address

SocketAddress: TypeAlias = tuple[socket.AddressFamily, "str | tuple[str, int] | tuple[str, int, int, int]"]
"""A family and what `socket.connect` takes for it."""


class Backend:
    """Shared by all connections to it.

    Attributes:
        address: as configured.
        socket_addresses: where to connect, in order of preference; empty while a name is not resolved.
            Replaced as a whole when a name's addresses change.
    """

    __slots__ = ("address", "socket_addresses")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket_addresses: tuple[SocketAddress, ...] = _literal(address)

    def __repr__(self) -> str:
        return f"<Backend {self.address}>"


def _literal(address: Address) -> tuple[SocketAddress, ...]:
    if address.path is not None:
        return ((socket.AF_UNIX, address.path),)
    if address.is_name:
        return ()
    if ":" in address.host:
        return ((socket.AF_INET6, (address.host, address.port)),)
    return ((socket.AF_INET, (address.host, address.port)),)
