"""One backend of one pool, with its configured address and its current socket addresses."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from refractium.backends.state import BackendState
from refractium.contract import SocketAddress

if TYPE_CHECKING:
    from refractium.addresses.address import Address

__all__ = ["Backend", "SocketAddress"]


class Backend:
    """A backend of a pool, shared by all connections to this backend.

    Args:
        address: address as configured.
        weight: share of the clients, relative to the weights of the pool's other backends: 1 to 1000.
        is_backup: whether the backend is used only while all other backends of the pool are down.
        state: state of the backend; by default a new state with the status unknown.

    Attributes:
        socket_addresses: addresses to connect to, in order of preference; empty while a host name is not
            resolved. A resolver replaces the whole tuple when the addresses of the name change.
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
        """Count of current connections and UDP sessions of the backend."""
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
