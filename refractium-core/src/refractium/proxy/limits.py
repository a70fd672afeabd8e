"""Limits on connections and UDP sessions, in all and for each client address."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.contract import Transport

if TYPE_CHECKING:
    from refractium.settings import Settings


class LimitNames(NamedTuple):
    """The settings that limit the clients of one transport.

    Attributes:
        total: the setting for all clients together.
        per_ip: the setting for one client address.
    """

    total: str
    per_ip: str


NAMES: Final = {
    Transport.TCP: LimitNames("max_connections", "max_connections_per_ip"),
    Transport.UDP: LimitNames("max_udp_sessions", "max_udp_sessions_per_ip"),
}


class Limits:
    """The limits and the counts of the connections or sessions of one transport.

    The counts are exact, because one `leave` follows every successful `enter`.

    Args:
        settings: the limits, and the number of bits of an IPv6 address that count.
        transport: the transport whose limits apply.

    Attributes:
        names: the names of the settings that limit the transport.
        active: the number of connections or sessions counted now.
    """

    def __init__(self, settings: Settings, transport: Transport = Transport.TCP) -> None:
        self.names = NAMES[transport]
        self._by_ip: dict[str, int] = {}
        self.active = 0
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Apply other limits to later connections; a connection that is counted already stays."""
        self._max: int = getattr(settings, self.names.total)
        self._max_per_ip: int = getattr(settings, self.names.per_ip)
        self._host_bits = 128 - settings.ipv6_prefix_length

    def origin(self, ip: str) -> str:
        """Return the name under which the connections of an address are counted.

        An IPv4 address is counted by itself, an IPv6 address by its network of `Settings.ipv6_prefix_length`
        bits: a client is given a whole network and may come from each of its addresses (RFC 6177 section 2).
        Link-local addresses all share one network, so each of them is counted by itself.
        """
        if ":" not in ip:
            return ip
        address = IPv6Address(ip)
        if address.is_link_local:
            return ip
        return f"{int(address) >> self._host_bits:x}/{128 - self._host_bits}"

    def enter(self, origin: str | None) -> str | None:
        """Count one more connection, or return the name of the setting that refuses it.

        Args:
            origin: the client's name from `Limits.origin`; None while the client is not known (see `assign`).
        """
        if self.active >= self._max:
            return self.names.total
        if origin is not None and (limit := self.assign(origin)) is not None:
            return limit
        self.active += 1
        return None

    def assign(self, origin: str) -> str | None:
        """Count an entered connection for its origin, or return the name of the setting that refuses it."""
        mine = self._by_ip.get(origin, 0)
        if mine >= self._max_per_ip:
            return self.names.per_ip
        self._by_ip[origin] = mine + 1
        return None

    def leave(self, origin: str | None) -> None:
        """Remove one connection from the count, and from the count of its origin."""
        self.active -= 1
        if origin is None:
            return
        left = self._by_ip[origin] - 1
        if left:
            self._by_ip[origin] = left
        else:
            del self._by_ip[origin]
