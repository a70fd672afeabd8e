"""The routes and timeouts that a connection keeps from its start to its end, whatever a reload changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import Networks
from refractium.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from refractium.routing import Router
    from refractium.settings import Settings


_KEEPALIVE: Final = Path("/proc/sys/net/ipv4/tcp_keepalive_time")
"""The kernel's keepalive time for IPv4, which applies to IPv6 as well (ip-sysctl)."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The routes and timeouts of one listener; immutable. A reload makes a new snapshot for new connections.

    Attributes:
        loop: the event loop.
        router: the router, which chooses a route for each connection.
        settings: the limits and timeouts.
        peeking: the deadlines of connections that wait for the first bytes of their clients.
        connecting: the deadlines of attempts to connect to a backend.
        idle: the deadlines of welds, by `Pool.idle_timeout_ms`.
        half_closed: the deadlines of half-closed welds, by `Pool.half_close_timeout_ms`.
        keeps_alive: whether a backend's socket sends probes to a silent peer (SO_KEEPALIVE, tcp(7)), by
            `Pool.idle_timeout_ms`. False if the idle timeout ends a connection before the first probe:
            keepalive would only cost a timer.
        trusted: the networks of `Settings.proxy_protocol_from`, whose proxies name their clients in a PROXY
            header; None if the setting is empty.
    """

    loop: asyncio.AbstractEventLoop
    router: Router
    settings: Settings
    peeking: Deadlines = field(init=False)
    connecting: Deadlines = field(init=False)
    idle: Mapping[int | None, Deadlines] = field(init=False)
    half_closed: Mapping[int | None, Deadlines] = field(init=False)
    keeps_alive: Mapping[int | None, bool] = field(init=False)
    trusted: Networks | None = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        for name, timeout_ms in (
            ("peeking", self.router.peek_timeout_ms or settings.peek_timeout_ms),
            ("connecting", settings.connect_timeout_ms),
        ):
            object.__setattr__(self, name, Deadlines(self.loop, timeout_ms))
        timeouts = {
            own: settings.idle_timeout_ms if own is None else own
            for own in {pool.idle_timeout_ms for pool in self.router.pools}
        }
        idle = {own: Deadlines(self.loop, timeout_ms) for own, timeout_ms in timeouts.items()}
        object.__setattr__(self, "idle", idle)
        half_closed = {
            own: Deadlines(self.loop, settings.half_close_timeout_ms if own is None else own)
            for own in {pool.half_close_timeout_ms for pool in self.router.pools}
        }
        object.__setattr__(self, "half_closed", half_closed)
        probe_ms = 1000 * _keepalive_seconds()
        keeps_alive = {own: timeout_ms > probe_ms for own, timeout_ms in timeouts.items()}
        object.__setattr__(self, "keeps_alive", keeps_alive)
        trusted = settings.proxy_protocol_from
        object.__setattr__(self, "trusted", Networks(trusted) if trusted else None)

    def close(self) -> None:
        """Cancel the timers. Call this method only after the connections of the snapshot have ended."""
        for deadlines in (
            self.peeking,
            self.connecting,
            *self.idle.values(),
            *self.half_closed.values(),
        ):
            deadlines.close()


def _keepalive_seconds() -> int:
    """Return the seconds of silence before a first keepalive probe; 0 if this number is unknown."""
    try:
        return int(_KEEPALIVE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
