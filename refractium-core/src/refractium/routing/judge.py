"""Judgement of routes and listeners: the rules that routes and listeners must meet together.

`judge` applies the same rules to the routes of a configuration file and to the routes of a program. `Route`
checks the rules for a single route.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, TypeAlias

from refractium.identify.everything import ANY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

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
        found += (*_duplicates(served), *_rivals_for_silence(served))
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


def _duplicates(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each route that has a combination of conditions in common with an earlier route of its protocol.

    A route without a condition never duplicates a route with a condition: the route without a condition takes
    only the clients that match no condition.
    """
    first: dict[tuple[str | None, ...], tuple[str, Route]] = {}
    for place, route in routes:
        conditions = route.conditions
        name = ANY if route.takes_the_rest else route.name
        rivals = (
            first.setdefault((route.transport, name, sni, alpn, host), (place, route))
            for sni, alpn, host in product(*(names or (None,) for names in conditions.values()))
        )
        if rival := next((place for place, one in list(rivals) if one is not route), None):
            yield place, f"the same protocol and conditions as {rival}: put all backends into one route"


def _rivals_for_silence(routes: PlacedRoutes) -> Iterator[Finding]:
    first: dict[str, tuple[str, Route]] = {}
    for place, route in routes:
        if not route.on_timeout:
            continue
        rival, other = first.setdefault(route.transport, (place, route))
        if other is not route:
            yield (
                f"{place}.on_timeout",
                f"silent clients already go to {rival}: only one route can have them",
            )
