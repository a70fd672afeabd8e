"""Routes by client address: the routes that are open to a client.

`client` is a condition of a route: if the condition does not hold, the route does not match. `allow` and
`deny` are access rules: a route that matches, but does not admit the client, refuses the client. Among routes
that rank equal, the first route that admits the client wins.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from refractium.addresses.networks import NetworkIndex, Networks
from refractium.routing.conditions import Overlaps, ranks

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from refractium.routing.pool import Pool
    from refractium.routing.route import Route

    PooledRoutes: TypeAlias = Sequence[tuple[Route, Pool]]


class OpenRoute(NamedTuple):
    """A route whose condition `client` holds for a client, or that has no such condition.

    Attributes:
        route: the route.
        pool: the pool of the route.
        admits: whether the access rules of the route admit the client.
    """

    route: Route
    pool: Pool
    admits: bool


class ClientConditions:
    """The conditions and access rules by which the routes of a listener depend on the client's address.

    Args:
        routes: the routes of the listener, in the order of the configuration.

    Attributes:
        networks: the networks that the choice of a route depends on. Two clients with the same
            `Networks.narrowest` have the same open routes.
    """

    def __init__(self, routes: PooledRoutes) -> None:
        self._routes = routes
        self._for_all = {at for at, (route, _) in enumerate(routes) if not route.clients}
        self._by_network = NetworkIndex(
            (text, at) for at, (route, _) in enumerate(routes) for text in route.clients
        )
        self.networks = Networks(_deciding([route for route, _ in routes]))

    def open_to(self, client: str | None) -> tuple[OpenRoute, ...]:
        """Return the routes that are open to a client, in the order of the configuration.

        Args:
            client: the client's IP address; None to return all routes.
        """
        if client is None:
            return tuple(OpenRoute(route, pool, admits=True) for route, pool in self._routes)
        numbers = sorted(self._for_all.union(self._by_network.find(client)))
        return tuple(
            OpenRoute(route, pool, pool.admits(client))
            for route, pool in map(self._routes.__getitem__, numbers)
        )


def preferred(routes: Sequence[OpenRoute]) -> list[OpenRoute]:
    """Sort routes: routes with the condition `client` first; among these, routes that admit the client first.

    All other routes stay in the order of the configuration.
    """
    return sorted(routes, key=lambda one: (not one.route.clients, not one.admits))


def silent_pool(routes: Sequence[OpenRoute]) -> Pool | None:
    """Return the pool for a client that stays silent, or None if no route takes silent clients.

    A route with ``on_timeout=True`` outranks a route that takes silent clients because its server speaks
    first. Among these, a route with the condition `client` outranks a route without this condition.
    """
    taking = [one for one in routes if one.route.takes_silent]
    first = min(taking, key=lambda one: _rank_for_silence(one.route), default=None)
    if first is None:
        return None
    equal = (one for one in taking if _silent_rivals_of(one.route) == _silent_rivals_of(first.route))
    return next((one for one in equal if one.admits), first).pool


def _rank_for_silence(route: Route) -> tuple[bool, bool]:
    return not route.on_timeout, not route.clients


def _silent_rivals_of(route: Route) -> Hashable:
    """Return a value that is equal for routes among which access rules choose for a silent client."""
    return route.competes_as, _rank_for_silence(route)


def _deciding(routes: Sequence[Route]) -> Iterator[str]:
    """Yield the networks of all conditions `client`, and of the access rules that choose between routes."""
    for route in routes:
        yield from route.clients
    rivals: dict[Hashable, list[Route]] = defaultdict(list)
    for route in routes:
        if route.takes_silent:
            rivals[_silent_rivals_of(route)].append(route)
    for route in chain(
        _with_rivals(routes),
        _with_rivals(routes[::-1]),
        *(equal for equal in rivals.values() if len(equal) > 1),
    ):
        yield from (*route.allow, *route.deny)


def _with_rivals(routes: Sequence[Route]) -> Iterator[Route]:
    """Yield each route to which an earlier route is equal, except for the access rules and the order."""
    earlier: Overlaps[Route] = Overlaps()
    for route in routes:
        group = route.competes_as, bool(route.clients)
        conditions = ranks(route.kinds, route.conditions)
        if any(True for _ in earlier.equal_to(group, conditions)):
            yield route
        earlier.add(group, conditions, route)
