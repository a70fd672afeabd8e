"""Judgement of routes and listeners: the rules that routes and listeners must meet together.

`judge` applies the same rules to the routes of a configuration file and to the routes of a program. `Route`
checks the rules for a single route.
"""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from refractium.addresses.networks import parse_network
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
    # The earlier routes that take all clients, and the earlier routes with the same access rules.
    unrestricted: Overlaps[tuple[int, str, Route]] = Overlaps()
    equal: Overlaps[tuple[int, str, Route]] = Overlaps()
    for at, (place, route) in enumerate(routes):
        who = route.transport, route.competes_as, _patterns(route), _networks(route.clients)
        access = _access(route)
        rivals = (
            next((rival for rival in those.equal_to(group, route.conditions) if rival[2] is not route), None)
            for those, group in ((unrestricted, who), (equal, (who, access)))
        )
        if (first := min(filter(None, rivals), key=itemgetter(0), default=None)) is not None:
            _, rival, one = first
            if _access(one) == access:
                yield place, f"the same protocol and conditions as {rival}: put all backends into one route"
            else:
                message = (
                    f"no client reaches this route: {rival} has the same conditions and takes all clients"
                )
                yield place, f"{message}: move this route above {rival}"
        if route.access is None:
            unrestricted.add(who, route.conditions, (at, place, route))
        equal.add((who, access), route.conditions, (at, place, route))


def _rivals_for_silence(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each route with ``on_timeout`` to which an earlier such route leaves no silent client.

    Access rules choose only between routes of the same protocol.
    """
    names: dict[Hashable, dict[str, tuple[int, str, Route]]] = defaultdict(dict)
    unrestricted: dict[Hashable, tuple[int, str, Route]] = {}
    equal: dict[Hashable, tuple[int, str, Route]] = {}
    for at, (place, route) in enumerate(routes):
        if not route.on_timeout:
            continue
        clients, name = (route.transport, _networks(route.clients)), route.competes_as
        access = _access(route)
        rivals = (
            next((first for other, first in names[clients].items() if other != name), None),
            unrestricted.get((clients, name)),
            equal.get((clients, name, access)),
        )
        first = min((one for one in rivals if one and one[2] is not route), default=None, key=itemgetter(0))
        if first is not None:
            message = f"silent clients already go to {first[1]}: only one route can have them"
            yield f"{place}.on_timeout", message
        entry = at, place, route
        names[clients].setdefault(name, entry)
        if route.access is None:
            unrestricted.setdefault((clients, name), entry)
        equal.setdefault((clients, name, access), entry)


def _access(route: Route) -> tuple[frozenset[Network], frozenset[Network]]:
    return _networks(route.allow), _networks(route.deny)


def _networks(texts: Iterable[str]) -> frozenset[Network]:
    return frozenset(map(parse_network, texts))
