"""The router of a listener: the dispatch table that leads to routes, and the pools for all other clients."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from refractium.addresses.networks import access_of
from refractium.identify import Candidate, DispatchTable
from refractium.routing.clients import ClientConditions, preferred, silent_pool
from refractium.routing.conditions import ConditionTable
from refractium.routing.rules import EVERY_ROUTE_FOR_EVERYBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from refractium.contract import MetadataKind, ProtocolMatch
    from refractium.guard.faults import Faults
    from refractium.identify import Selection
    from refractium.routing.clients import OpenRoute
    from refractium.routing.pool import Pool
    from refractium.routing.pools import Pools
    from refractium.routing.rules import ListenerRules


class Router:
    """The rules by which a listener chooses a pool for each client: compiled once, and then only read.

    Args:
        pools: the pools of all routes of one transport. `refractium.routing.judge` must have accepted these
            routes.
        peek_buffer_size: see `DispatchTable`.
        rules: the routes that the listener serves, and the access rules of the listener.
        faults: see `DispatchTable`.

    Attributes:
        depends_on_client: whether the choice of a route depends on the client's address. If so, `for_client`
            returns the router for a client, and in this router, `table`, `silent`, `fallback` and `sole`
            assume that every condition `client` holds.
        table: the dispatch table, from first bytes to the pool of the matching route.
        silent: the pool for clients that stay silent; None if no route takes silent clients.
        fallback: the pool of the route for all clients that match no other route; None without such a route.
        sole: the pool for silent clients, if no bytes can lead the client to another pool. Then Refractium
            need not wait for bytes. None if the bytes matter.
        pools: the pools to which the router leads clients.
        peek_timeout_ms: the peek timeout of the listener; None for the time in the settings.
        access: the access rules of the listener; None if the listener serves every client.
        labels: the labels of the routes that the listener serves.
    """

    def __init__(
        self,
        pools: Pools,
        peek_buffer_size: int,
        rules: ListenerRules = EVERY_ROUTE_FOR_EVERYBODY,
        faults: Faults | None = None,
    ) -> None:
        routes = [one for one in pools.routes if rules.serves(one[0].label, one[0].name)]
        self._peek_buffer_size = peek_buffer_size
        self._faults = faults
        self._conditions = ClientConditions(routes)
        self._by_network: dict[Hashable, Router] = {}
        self._by_routes: dict[tuple[OpenRoute, ...], Router] = {}
        self.depends_on_client = bool(self._conditions.networks)
        self._set_choices(self._conditions.open_to(None))
        self.pools = tuple(pool for _, pool in routes)
        self.peek_timeout_ms = rules.peek_timeout_ms
        self.access = access_of(rules.allow, rules.deny)
        self.labels = tuple(dict.fromkeys(route.label for route, _ in routes))

    def _set_choices(self, routes: Sequence[OpenRoute]) -> None:
        """Set `table`, `silent`, `fallback` and `sole` for clients to which exactly these routes are open."""
        specific = [one for one in routes if not one.route.takes_the_rest]
        candidates: dict[int, Candidate[Pool]] = {}
        possible: set[Pool | None] = set()  # the pools to which bytes can lead; None if names decide
        for name in dict.fromkeys(one.route.name for one in specific):
            of_name = [one for one in specific if one.route.name == name]
            select, asks_for, only = _selection(of_name)
            possible.add(only)
            for protocol in (protocol for one in of_name for protocol in one.route.protocols):
                candidates[id(protocol)] = Candidate(protocol, select, asks_for)
        rest = preferred([one for one in routes if one.route.takes_the_rest])
        self.table: DispatchTable[Pool] = DispatchTable(
            candidates.values(), self._peek_buffer_size, self._faults
        )
        self.silent = silent_pool(routes)
        self.fallback = rest[0].pool if rest else None
        if self.fallback is not None:
            possible.add(self.fallback)
        # A client of another protocol gains nothing here: it reaches the same backend if it stays silent.
        self.sole = self.silent if possible == {self.silent} else None

    def for_client(self, client: str) -> Router:
        """Return a router with only the routes whose condition `client` holds for a client.

        Clients with the same routes share a router, which is made for the first of these clients.

        Args:
            client: the client's IP address. An IPv4 address must be in IPv4 form, not mapped into IPv6.
        """
        if not self.depends_on_client:
            return self
        network = self._conditions.networks.narrowest(client)
        router = self._by_network.get(network)
        if router is None:
            routes = self._conditions.open_to(client)
            router = self._by_routes.get(routes)
            if router is None:
                router = self._by_routes[routes] = copy(self)
                router.depends_on_client = False
                router._set_choices(routes)  # noqa: SLF001 - a copy of this router
                router.pools = tuple(one.pool for one in routes)
            self._by_network[network] = router
        return router

    def admits(self, client: str) -> bool:
        """Return whether the listener serves clients with this IP address."""
        return self.access is None or self.access.admits(client)


def _selection(
    routes: Sequence[OpenRoute],
) -> tuple[Callable[[ProtocolMatch], Selection[Pool]], frozenset[str], Pool | None]:
    """Return the function that selects a pool for a match, and the metadata keys that this function reads.

    The third item is the pool of every match, if the choice depends on no metadata; else None.

    Args:
        routes: the routes of one protocol that are open to a client, in the order of the configuration.
    """
    kinds: dict[str, MetadataKind] = {}
    for one in routes:
        kinds |= one.route.kinds
    best_first = [one.pool for one in preferred(routes)]
    table = ConditionTable(kinds, [(one.route.conditions, one.pool) for one in routes], best_first)
    if table.asks_for:
        return table.select, table.asks_for, None
    return lambda _: best_first[0], table.asks_for, best_first[0]
