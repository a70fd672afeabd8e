"""The limiter of connections and UDP sessions: in total, and for each client address."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.contract import Transport

if TYPE_CHECKING:
    from refractium.settings import Settings


class LimitNames(NamedTuple):
    """The settings that limit the clients of one transport.

    Attributes:
        total: the name of the setting that limits all clients together.
        per_ip: the name of the setting that limits the clients of one address or IPv6 network.
    """

    total: str
    per_ip: str


NAMES: Final = {
    Transport.TCP: LimitNames("max_connections", "max_connections_per_ip"),
    Transport.UDP: LimitNames("max_udp_sessions", "max_udp_sessions_per_ip"),
}


class Limiter:
    """The limiter of one transport: it counts connections or sessions, and refuses those above a limit.

    The counts are exact, because one `leave` follows every successful `enter`.

    Args:
        settings: the limits, and the prefix length of the networks by which IPv6 clients are counted.
        transport: the transport whose limits apply.

    Attributes:
        names: the names of the settings that limit the transport.
        active: the number of connections or sessions counted now.
    """

    def __init__(self, settings: Settings, transport: Transport = Transport.TCP) -> None:
        self.names = NAMES[transport]
        self._by_origin: dict[str, int] = {}
        self.active = 0
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Apply new limits to later connections; connections that are already counted stay open."""
        self._max: int = getattr(settings, self.names.total)
        self._max_per_ip: int = getattr(settings, self.names.per_ip)
        self._host_bits = 128 - settings.ipv6_prefix_length

    def origin(self, ip: str) -> str:
        """Return the name under which the connections of an address are counted.

        An IPv4 address is counted by itself. An IPv6 address is counted with all addresses that have the same
        first `Settings.ipv6_prefix_length` bits, because one client may use every address of its network
        (RFC 6177 section 2). All link-local addresses share one network, so each is counted by itself.
        """
        if ":" not in ip:
            return ip
        address = IPv6Address(ip)
        if address.is_link_local:
            return ip
        return f"{int(address) >> self._host_bits:x}/{128 - self._host_bits}"

    def enter(self, origin: str | None) -> str | None:
        """Count one more connection, or return the name of the setting whose limit is reached.

        Args:
            origin: the client's name from `Limiter.origin`; None while the client is not known (see
                `assign`).
        """
        if self.active >= self._max:
            return self.names.total
        if origin is not None:  # as in `assign`, whose call would take a third of the time
            mine = self._by_origin.get(origin, 0)
            if mine >= self._max_per_ip:
                return self.names.per_ip
            self._by_origin[origin] = mine + 1
        self.active += 1
        return None

    def assign(self, origin: str) -> str | None:
        """Count one connection for an origin, or return the name of the setting whose limit is reached."""
        mine = self._by_origin.get(origin, 0)
        if mine >= self._max_per_ip:
            return self.names.per_ip
        self._by_origin[origin] = mine + 1
        return None

    def leave(self, origin: str | None) -> None:
        """Remove one connection from the total count and from the count of its origin."""
        self.active -= 1
        if origin is None:
            return
        left = self._by_origin[origin] - 1
        if left:
            self._by_origin[origin] = left
        else:
            del self._by_origin[origin]
