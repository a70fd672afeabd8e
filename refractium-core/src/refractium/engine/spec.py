"""Routes, listeners and settings of an engine, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.routing import ListenerRules
from refractium.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.hooks import HookUse
    from refractium.routing import Route

DEFAULTS: Final = Settings()
ONE_LISTENER: Final = {"": ListenerRules()}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All routes, listeners, settings and hooks of an engine.

    Attributes:
        tcp: the routes for connections, in order.
        udp: the routes for datagrams, in order.
        fallback_tcp: one ``HOST:PORT`` or several, for connections that no route matches. Without a fallback,
            the engine closes such connections.
        fallback_udp: one ``HOST:PORT`` or several, for datagrams that no route matches. Without a fallback,
            the engine drops such datagrams.
        settings: limits and timeouts.
        listeners: the rules of listeners, by the name that `start_tcp`, `start_udp` and `start_on` take. By
            default there is one listener with an empty name, which serves every route to everybody.
        hooks: packet hooks of every route and of the fallbacks, in the form that `Route` takes.
    """

    tcp: Sequence[Route] = ()
    udp: Sequence[Route] = ()
    fallback_tcp: str | Sequence[str] = ()
    fallback_udp: str | Sequence[str] = ()
    settings: Settings = DEFAULTS
    listeners: Mapping[str, ListenerRules] = field(default_factory=lambda: dict(ONE_LISTENER))
    hooks: Sequence[HookUse] = ()

    def routes(self, transport: Transport) -> Sequence[Route]:
        """Return the routes of one transport."""
        return self.tcp if transport is Transport.TCP else self.udp

    def fallback(self, transport: Transport) -> str | Sequence[str]:
        """Return the addresses of the fallback of one transport."""
        return self.fallback_tcp if transport is Transport.TCP else self.fallback_udp
