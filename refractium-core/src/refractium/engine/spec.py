"""Routes, listeners and settings of an engine, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import network_problems
from refractium.contract import Transport
from refractium.errors import ConfigError
from refractium.problems import Problem
from refractium.routing import ListenerRules
from refractium.routing.judge import judge
from refractium.routing.route import fallback_route, hook_problems
from refractium.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
        fallback_tcp: one address ``HOST:PORT`` or several addresses, for connections that no route matches;
            the short form of a route of `AnyProtocol` that every listener serves. Without such a route, the
            engine closes these connections.
        fallback_udp: one address ``HOST:PORT`` or several addresses, for datagrams that no route matches; the
            short form of a route of `AnyProtocol`. Without such a route, the engine drops these datagrams.
        settings: limits and timeouts.
        listeners: the rules of listeners, by the name that `start_tcp`, `start_udp` and `start_on` receive.
            By default, one listener with an empty name serves every route to every client.
        hooks: packet hooks that apply to every route and to the fallbacks, in the form of `Route.hooks`.
    """

    tcp: Sequence[Route] = ()
    udp: Sequence[Route] = ()
    fallback_tcp: str | Sequence[str] = ()
    fallback_udp: str | Sequence[str] = ()
    settings: Settings = DEFAULTS
    listeners: Mapping[str, ListenerRules] = field(default_factory=lambda: dict(ONE_LISTENER))
    hooks: Sequence[HookUse] = ()

    def routes(self, transport: Transport) -> Sequence[Route]:
        """Return the routes of one transport, including the route for the clients that match no other route.

        Raises:
            ConfigError: an address of the fallback is not valid for the transport.
        """
        written = self._written(transport)
        fallback = self._fallback_texts(transport)
        return (*written, fallback_route(transport, fallback)) if fallback else written

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that make the engine unusable, each with the argument that has the problem."""
        yield from network_problems({"settings.proxy_protocol_from": self.settings.proxy_protocol_from})
        yield from hook_problems(self.hooks)
        names = {name for route in (*self.tcp, *self.udp) for name in (route.label, route.name)}
        listeners = [(f'listeners["{name}"]', rules) for name, rules in self.listeners.items()]
        found: dict[tuple[str, str], None] = {}
        for transport in Transport:
            routes = [(f"{transport}[{at}]", route) for at, route in enumerate(self._written(transport))]
            for _, route in routes:
                if route.transport is not transport:
                    yield Problem(f"{route.label} is not a route for {transport}", where=transport)
            if texts := self._fallback_texts(transport):
                try:
                    routes.append((f"fallback_{transport}", fallback_route(transport, texts)))
                except ConfigError as error:
                    yield from (Problem(one.message, f"fallback_{transport}") for one in error.problems)
            found |= dict.fromkeys(judge(routes, listeners, names))
        for where, message in found:
            yield Problem(message, where)

    def _written(self, transport: Transport) -> Sequence[Route]:
        return self.tcp if transport is Transport.TCP else self.udp

    def _fallback_texts(self, transport: Transport) -> Sequence[str]:
        written = self.fallback_tcp if transport is Transport.TCP else self.fallback_udp
        return (written,) if isinstance(written, str) else written
