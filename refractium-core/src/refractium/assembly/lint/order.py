"""Warnings about the order of the routes of each listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.assembly.lint.rules import SILENT_CLIENTS, UNREACHABLE_ROUTE, WEAK_BEFORE_STRONG, Warned
from refractium.contract import Strength, Transport
from refractium.routing.judge import covered, rivals_for_silence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.config.model import Listeners
    from refractium.routing import Route
    from refractium.routing.judge import PlacedRoutes


def doubtful_orders(routes: PlacedRoutes, listeners: Listeners) -> Iterator[Warned]:
    """Yield the warnings about the order of the routes of each listener.

    The order matters only among the routes of one listener.
    """
    found: dict[Warned, None] = {}
    for _, listener in listeners:
        served = [
            (path, one)
            for path, one in routes
            if one.transport in listener.transports and listener.rules.serves(one.label, one.name)
        ]
        found.update(dict.fromkeys(_doubtful_orders_of_a_listener(served)))
    yield from found


def _doubtful_orders_of_a_listener(routes: PlacedRoutes) -> Iterator[Warned]:
    """Yield each second route for silent clients, and each route that is asked before an earlier route."""
    for path, message in covered(routes):
        yield Warned(UNREACHABLE_ROUTE, path, message)
    silent = [(path, route) for path, route in routes if route.takes_silent]
    for path, _, rival in rivals_for_silence(silent):
        yield Warned(SILENT_CLIENTS, path, f"silent clients go to {rival}: only one route can have them")
    weak: dict[Transport, Route] = {}
    for path, route in routes:
        strengths = {protocol.strength for protocol in route.protocols}
        if route.transport in weak and Strength.WEAK not in strengths:
            earlier = weak[route.transport]
            message = f"is asked before {earlier}, which stands earlier but has a weaker protocol"
            yield Warned(WEAK_BEFORE_STRONG, path, message)
        if strengths == {Strength.WEAK}:
            weak.setdefault(route.transport, route)
