"""How many connections there may be, in all and from one address."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refractium.settings import Settings


class Limits:
    """Counts exactly: every `enter` that said yes is followed by one `leave`.

    Args:
        settings: `Settings.max_connections` and `Settings.max_connections_per_ip`.

    Attributes:
        active: connections held now.
    """

    def __init__(self, settings: Settings) -> None:
        self._by_ip: dict[str, int] = {}
        self.active = 0
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Hold those to come to other limits; nobody who is in is put out."""
        self._max = settings.max_connections
        self._max_per_ip = settings.max_connections_per_ip

    def enter(self, ip: str | None) -> str | None:
        """Count one connection in, or say which limit keeps it out: the setting's name.

        Args:
            ip: whose it is; None while that is not known (see `assign`).
        """
        if self.active >= self._max:
            return "max_connections"
        if ip is not None and (limit := self.assign(ip)) is not None:
            return limit
        self.active += 1
        return None

    def assign(self, ip: str) -> str | None:
        """Count a connection that is in already as this address's; or say which limit forbids it."""
        mine = self._by_ip.get(ip, 0)
        if mine >= self._max_per_ip:
            return "max_connections_per_ip"
        self._by_ip[ip] = mine + 1
        return None

    def leave(self, ip: str | None) -> None:
        """Count one connection out, and as no longer the address's that it was counted as."""
        self.active -= 1
        if ip is None:
            return
        left = self._by_ip[ip] - 1
        if left:
            self._by_ip[ip] = left
        else:
            del self._by_ip[ip]
