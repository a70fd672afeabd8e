"""Warnings about routes that take clients from each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from refractium.addresses.networks import parse_network
from refractium.assembly.lint.rules import (
    OVERLAPPING_ROUTES,
    REFUSING_ROUTE,
    SILENT_CLIENTS,
    UNREACHABLE_CONDITION,
    UNREACHABLE_ROUTE,
    WEAK_BEFORE_STRONG,
    Warned,
)
from refractium.contract import Strength
from refractium.problems import key_path
from refractium.routing.reach import reaches
from refractium.routing.route import SHORT_FORMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refractium.addresses.networks import Network
    from refractium.config.model import Listeners
    from refractium.routing import Route
    from refractium.routing.judge import PlacedRoutes
    from refractium.routing.reach import Entry, Reach


def doubtful_orders(routes: PlacedRoutes, listeners: Listeners) -> Iterator[Warned]:
    """Yield the warnings about routes whose clients reach other routes, and about the order of routes."""
    found: dict[Warned, None] = {}
    rules = [(transport, one.rules) for _, one in listeners for transport in one.transports]
    transports = {path: len(list(those)) for path, those in groupby(routes, key=lambda one: one[0])}
    for (path, route), reach in zip(routes, reaches([route for _, route in routes], rules), strict=True):
        over = f" over {route.transport}" if transports[path] > 1 else ""
        found.update(dict.fromkeys(_unreachable(path, over, reach, routes)))
    for _, listener in listeners:
        served = [
            (path, one)
            for path, one in routes
            if one.transport in listener.transports and listener.rules.serves(one.label, one.name)
        ]
        found.update(dict.fromkeys(_weak_before_strong(served)))
    yield from found


def named(place: str, route: Route) -> str:
    """Return the place of a route for a message, and the label of the route if the place lacks the label."""
    return place if route.label in place else f"{place} ({route.label})"


def _unreachable(path: str, over: str, reach: Reach, routes: PlacedRoutes) -> Iterator[Warned]:
    route = reach.route
    if not (reach.is_served and reach.is_judged):
        return
    if not reach.is_admitted:
        message = f"no client reaches this route{over}: each of its listeners refuses all of its clients"
        yield Warned(UNREACHABLE_ROUTE, path, f"{message}: change allow and deny, or client")
        return
    if not reach.is_reached:
        if reach.rivals:
            rivals = [routes[at] for at in reach.rivals]
            message = f"no client reaches this route{over}: all of its clients go to {_listed(rivals)}"
            yield Warned(UNREACHABLE_ROUTE, path, f"{message}: {_remedy(route, rivals)}")
        return
    if not reach.is_open:
        message = f"refuses every client that matches{over}: change allow and deny of this route"
        yield Warned(REFUSING_ROUTE, path, message)
    if reach.overlaps is not None:
        rival = routes[reach.overlaps]
        message = f"clients that match both this route and {named(*rival)} go to {rival[0]}"
        remedy = "if they belong here, add a route with the conditions of both"
        yield Warned(OVERLAPPING_ROUTES, path, f"{message}: {remedy}")
    for at in reach.silent_rivals:
        rival = routes[at]
        message = f"silent clients go to {named(*rival)}, and not to this route"
        remedy = "write on_timeout = false in this route, or give the routes different listeners"
        yield Warned(SILENT_CLIENTS, path, f"{message}: {remedy}")
    for entry, where in _entries(route):
        if entry in reach.reached or (rival_at := reach.rivals_for.get(entry)) is None:
            continue
        rival = routes[rival_at]
        message = f"no client reaches this route{over} by this entry: such clients go to {named(*rival)}"
        yield Warned(UNREACHABLE_CONDITION, f"{path}.{where}", f"{message}: {_remedy(route, [rival])}")


def _entries(route: Route) -> Iterator[tuple[Entry, str]]:
    """Yield each entry of the conditions of a route with its key path."""
    for key, patterns in route.conditions.items():
        is_short = key in SHORT_FORMS and bool(getattr(route, key))
        written = getattr(route, key) if is_short else route.match[key]
        where = key if is_short else key_path("match", key)
        is_alone = isinstance(written, str) or not isinstance(written, Sequence)
        for at, pattern in enumerate(patterns):
            yield (key, pattern), where if is_alone else f"{where}[{at}]"
    for at, network in enumerate(route.clients):
        yield ("client", network), "client" if isinstance(route.client, str) else f"client[{at}]"


def _listed(routes: Sequence[tuple[str, Route]]) -> str:
    shown = list(dict.fromkeys(named(*one) for one in routes))
    return " and ".join(shown[:2]) if len(shown) < 3 else f"{shown[0]} and {len(shown) - 1} other routes"  # noqa: PLR2004


def _remedy(route: Route, rivals: Sequence[tuple[str, Route]]) -> str:
    """Return what to do: the order decides only between routes with conditions on the same keys."""
    if all(_keys(one) == _keys(route) for _, one in rivals):
        return f"move this route above {rivals[0][0]}"
    return "change the conditions of one of the routes"


def _keys(route: Route) -> tuple[frozenset[str], bool]:
    return frozenset(route.conditions), bool(route.clients)


def _weak_before_strong(routes: PlacedRoutes) -> Iterator[Warned]:
    """Yield each route of a listener that is asked before an earlier route with a weaker protocol."""
    weak: dict[tuple[str, str, frozenset[Network]], tuple[str, Route]] = {}
    for path, route in routes:
        strengths = {protocol.strength for protocol in route.protocols}
        networks = frozenset(map(parse_network, route.clients))
        if Strength.WEAK not in strengths:
            for (transport, _, others), earlier in weak.items():
                if transport == route.transport and _meet(networks, others):
                    message = (
                        f"is asked before {named(*earlier)}, which stands earlier but has a weaker protocol"
                    )
                    yield Warned(WEAK_BEFORE_STRONG, path, f"{message}: move this route above {earlier[0]}")
                    break
        elif strengths == {Strength.WEAK} and not route.takes_the_rest:
            weak.setdefault((route.transport, route.name, networks), (path, route))


def _meet(networks: Iterable[Network], others: Iterable[Network]) -> bool:
    """Return whether a client can be in both lists of networks. An empty list stands for all clients."""
    if not networks or not others:
        return True
    return any(one.version == other.version and one.overlaps(other) for one in networks for other in others)
