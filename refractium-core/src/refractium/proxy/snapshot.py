"""What a connection is served by, from its start to its end, whatever is reloaded meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from refractium.addresses.networks import Networks
from refractium.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio

    from refractium.routing import Router
    from refractium.settings import Settings


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
        trusted: the networks of `Settings.proxy_protocol_from`, of proxies that say who their clients are;
            None for none.
    """

    loop: asyncio.AbstractEventLoop
    router: Router
    settings: Settings
    peeking: Deadlines = field(init=False)
    connecting: Deadlines = field(init=False)
    idle: Deadlines = field(init=False)
    trusted: Networks | None = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        for name, timeout_ms in (
            ("peeking", settings.peek_timeout_ms),
            ("connecting", settings.connect_timeout_ms),
            ("idle", settings.idle_timeout_ms),
        ):
            object.__setattr__(self, name, Deadlines(self.loop, timeout_ms))
        trusted = settings.proxy_protocol_from
        object.__setattr__(self, "trusted", Networks(trusted) if trusted else None)

    def close(self) -> None:
        """Forget the timers. Its connections have ended before."""
        for deadlines in (self.peeking, self.connecting, self.idle):
            deadlines.close()
