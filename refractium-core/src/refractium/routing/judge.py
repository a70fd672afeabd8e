"""Judgement of routes and listeners: the rules that routes and listeners must meet together.

`judge` applies the same rules to the routes of a configuration file and to the routes of a program. `Route`
checks the rules for a single route.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from refractium.addresses.networks import Networks, parse_network
from refractium.identify.patterns import PatternProtocol
from refractium.routing.conditions import Overlaps

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence

    from refractium.addresses.networks import Network
    from refractium.problems import Finding
    from refractium.routing.route import Route
    from refractium.routing.rules import ListenerRules

PlacedRoutes: TypeAlias = "Sequence[tuple[str, Route]]"
"""Routes, each with the place that messages name, such as ``protocols[1]``."""


def judge(
    routes: PlacedRoutes, listeners: Sequence[tuple[str, ListenerRules]], names: Collection[str]
) -> Iterator[Finding]:
    """Yield the problems that make routes and listeners unusable together, each problem with its place.

    Args:
        routes: the routes. Routes with the same place (one route for each transport) count as one route.
        listeners: the rules of each listener, with the place of the listener in messages.
        names: the labels and protocols that the rules of a listener may name.
    """
    found = list(_shared_ids(routes))
    for place, rules in listeners:
        found += [(f"{place}.{one.where}", one.message) for one in rules.problems(names)]
        served = [one for one in routes if rules.serves(one[1].label, one[1].name)]
        found += (*_other_definitions(served), *_duplicates(served), *_rivals_for_silence(served))
    yield from dict.fromkeys(found)


def _shared_ids(routes: PlacedRoutes) -> Iterator[Finding]:
    names = {route.name: place for place, route in routes if route.id is None}
    first: dict[str, str] = {}
    for place, route in routes:
        if route.id is None:
            continue
        rival = first.setdefault(route.id, place)
        if rival != place:
            yield f"{place}.id", f"{rival} has this id already: choose another"
        elif route.id in names:
            yield f"{place}.id", f"{names[route.id]} has this name, after its protocol: choose another id"


def _other_definitions(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each route that defines its protocol in another way than an earlier route of the same name.

    The two routes have other patterns, or protocols that declare a metadata key with another kind.
    """
    first: dict[Hashable, tuple[str, Route]] = {}
    for place, route in routes:
        rival, one = first.setdefault((route.transport, route.name), (place, route))
        if _patterns(one) != _patterns(route):
            yield (
                place,
                f"{rival} defines {route.name} by other patterns: write the same patterns or another name",
            )
        for key, kind in route.kinds.items():
            if one.kinds.get(key, kind) is not kind:
                message = f"the protocol {route.name} of {rival} declares {key} as {one.kinds[key].value}"
                yield place, f"{message}, and not as {kind.value}: give one protocol another name"


def _patterns(route: Route) -> Hashable:
    return next((one.patterns for one in route.protocols if isinstance(one, PatternProtocol)), None)


def _duplicates(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each route that has a combination of conditions in common with an earlier route of its protocol.

    Two such routes are valid if the access rules of the earlier route leave clients to the later route. A
    route without a condition never duplicates a route with a condition: the route without a condition takes
    only the clients that match no condition.
    """
    earlier: Overlaps[tuple[str, Route]] = Overlaps()
    for place, route in routes:
        who = route.transport, route.competes_as, _patterns(route), _networks(route.clients)
        for rival, one in earlier.equal_to(who, route.conditions):
            if one is route or _leaves_clients(one, route):
                continue
            if _access(one) == _access(route):
                yield place, f"the same protocol and conditions as {rival}: put all backends into one route"
            else:
                message = (
                    f"no client reaches this route: {rival} has the same conditions and takes all clients"
                )
                yield place, f"{message}: move this route above {rival}"
            break
        earlier.add(who, route.conditions, (place, route))


def covered(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each route of a listener whose clients all go to an earlier route that ranks equal.

    The networks of such a route are in the networks of the earlier route.
    """
    earlier: Overlaps[tuple[str, Route]] = Overlaps()
    for place, route in routes:
        who = route.transport, route.competes_as, _patterns(route), bool(route.clients)
        for rival, one in earlier.equal_to(who, route.conditions, everywhere=True):
            if one is not route and _covers(one, route):
                message = f"no client reaches this route: all of its clients go to {rival}"
                yield place, f"{message}: move this route above {rival}"
                break
        earlier.add(who, route.conditions, (place, route))


def _covers(one: Route, other: Route) -> bool:
    """Return whether a route with the same names admits all clients that another route admits."""
    return (
        all(map(Networks(one.clients).covers, _networks(other.clients)))
        and (
            not one.allow
            or (bool(other.allow) and all(map(Networks(one.allow).covers, _networks(other.allow))))
        )
        and all(map(Networks(other.deny).covers, _networks(one.deny)))
    )


def _rivals_for_silence(routes: PlacedRoutes) -> Iterator[Finding]:
    asked = [(place, route) for place, route in routes if route.on_timeout]
    for place, rival, _ in rivals_for_silence(asked):
        yield f"{place}.on_timeout", f"silent clients already go to {rival}: only one route can have them"


def rivals_for_silence(routes: PlacedRoutes) -> Iterator[tuple[str, str, Route]]:
    """Yield the place of each route to which an earlier route, the rival, leaves no silent client.

    Args:
        routes: routes that take silent clients.

    Yields:
        The place of the route, the place of the rival, and the rival.
    """
    earlier: dict[Hashable, list[tuple[str, Route]]] = defaultdict(list)
    for place, route in routes:
        same = earlier[route.transport, _networks(route.clients)]
        for rival, one in same:
            # Access rules choose only between routes of the same protocol.
            if one is not route and (one.competes_as != route.competes_as or not _leaves_clients(one, route)):
                yield place, rival, one
                break
        same.append((place, route))


def _leaves_clients(one: Route, other: Route) -> bool:
    """Return whether the access rules of a route leave clients to a later route with the same conditions."""
    return one.access is not None and _access(one) != _access(other)


def _access(route: Route) -> tuple[frozenset[Network], frozenset[Network]]:
    return _networks(route.allow), _networks(route.deny)


def _networks(texts: Iterable[str]) -> frozenset[Network]:
    return frozenset(map(parse_network, texts))
