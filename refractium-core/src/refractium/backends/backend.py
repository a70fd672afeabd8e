"""One backend of one pool: the address as it was configured, and the socket addresses it stands for now."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from refractium.backends.state import BackendState
from refractium.contract import SocketAddress

if TYPE_CHECKING:
    from refractium.addresses.address import Address

__all__ = ["Backend", "SocketAddress"]


class Backend:
    """Shared by all connections to it.

    Args:
        address: as configured.
        weight: its share compared with the pool's others, from 1 to 1000.
        is_backup: whether it is used only when none of the others is up.
        state: what is known of it; by default its own, and nothing.

    Attributes:
        socket_addresses: where to connect, in order of preference; empty while a name is not resolved.
            Replaced as a whole when a name's addresses change.
    """

    __slots__ = ("address", "is_backup", "socket_addresses", "state", "weight")

    def __init__(
        self,
        address: Address,
        *,
        weight: int = 1,
        is_backup: bool = False,
        state: BackendState | None = None,
    ) -> None:
        self.address = address
        self.weight = weight
        self.is_backup = is_backup
        self.state = BackendState(address) if state is None else state
        self.socket_addresses: tuple[SocketAddress, ...] = _literal(address)

    @property
    def active(self) -> int:
        """Connections and UDP sessions that it has now."""
        return self.state.active

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
