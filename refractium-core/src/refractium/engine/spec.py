"""Routes, listeners and settings of an engine, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import network_problems
from refractium.contract import Transport
from refractium.problems import Problem
from refractium.routing import ListenerRules
from refractium.routing.judge import judge
from refractium.routing.route import backend_address, hook_problems
from refractium.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.addresses.address import Address
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
        fallback_tcp: one address ``HOST:PORT`` or several addresses, for connections that no route matches.
            Without a fallback, the engine closes such connections.
        fallback_udp: one address ``HOST:PORT`` or several addresses, for datagrams that no route matches.
            Without a fallback, the engine drops such datagrams.
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
        """Return the routes of one transport."""
        return self.tcp if transport is Transport.TCP else self.udp

    def fallback(self, transport: Transport) -> tuple[Address, ...]:
        """Return the addresses of the fallback of one transport.

        Raises:
            ValueError: an address is not valid for the transport.
        """
        return tuple(backend_address(text, transport) for text in self._fallback_texts(transport))

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that make the engine unusable, each with the argument that has the problem."""
        yield from network_problems({"settings.proxy_protocol_from": self.settings.proxy_protocol_from})
        yield from hook_problems(self.hooks)
        names = {name for route in (*self.tcp, *self.udp) for name in (route.label, route.name)}
        listeners = [(f'listeners["{name}"]', rules) for name, rules in self.listeners.items()]
        found: dict[tuple[str, str], None] = {}
        for transport in Transport:
            for route in self.routes(transport):
                if route.transport is not transport:
                    yield Problem(f"{route} is not a route for {transport}", where=transport)
            for text in self._fallback_texts(transport):
                try:
                    backend_address(text, transport)
                except ValueError as error:
                    yield Problem(str(error), where=f"fallback_{transport}")
            routes = [(f"{transport}[{at}]", route) for at, route in enumerate(self.routes(transport))]
            found |= dict.fromkeys(judge(routes, listeners, names))
        for where, message in found:
            yield Problem(message, where)

    def _fallback_texts(self, transport: Transport) -> Sequence[str]:
        written = self.fallback_tcp if transport is Transport.TCP else self.fallback_udp
        return (written,) if isinstance(written, str) else written
