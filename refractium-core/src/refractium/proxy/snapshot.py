"""What a connection is served by, from its start to its end, whatever is reloaded meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import Networks
from refractium.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio

    from refractium.routing import Router
    from refractium.settings import Settings


_KEEPALIVE: Final = Path("/proc/sys/net/ipv4/tcp_keepalive_time")
"""For IPv6 as well (ip-sysctl)."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Routes and timeouts of one listener; immutable. A reload makes another one for connections to come.

    Attributes:
        loop: the event loop.
        router: where connections go.
        settings: limits and timeouts.
        peeking: the deadlines of connections whose first bytes are awaited.
        connecting: those of attempts to reach a backend.
        idle: those of welds.
        keeps_alive: whether a backend's socket asks after a silent peer (SO_KEEPALIVE, tcp(7)). Where the
            idle timeout ends the connection sooner, that costs a timer and changes nothing.
        trusted: the networks of `Settings.proxy_protocol_from`, of proxies that say who their clients are;
            None for none.
    """

    loop: asyncio.AbstractEventLoop
    router: Router
    settings: Settings
    peeking: Deadlines = field(init=False)
    connecting: Deadlines = field(init=False)
    idle: Deadlines = field(init=False)
    keeps_alive: bool = field(init=False)
    trusted: Networks | None = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        for name, timeout_ms in (
            ("peeking", settings.peek_timeout_ms),
            ("connecting", settings.connect_timeout_ms),
            ("idle", settings.idle_timeout_ms),
        ):
            object.__setattr__(self, name, Deadlines(self.loop, timeout_ms))
        object.__setattr__(self, "keeps_alive", settings.idle_timeout_ms > 1000 * _keepalive_seconds())
        trusted = settings.proxy_protocol_from
        object.__setattr__(self, "trusted", Networks(trusted) if trusted else None)

    def close(self) -> None:
        """Forget the timers. Its connections have ended before."""
        for deadlines in (self.peeking, self.connecting, self.idle):
            deadlines.close()


def _keepalive_seconds() -> int:
    """Return the seconds of silence before a first keepalive; 0 where the kernel does not tell."""
    try:
        return int(_KEEPALIVE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
