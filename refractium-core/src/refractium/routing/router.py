"""The router of a listener: the dispatch table, with routes as its outcomes, and the ways for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from refractium.addresses.networks import access_of
from refractium.contract import NO, ProtocolMatch, Verdict
from refractium.errors import ConfigError
from refractium.identify import Candidate, Table
from refractium.problems import Problem
from refractium.routing.rules import EVERY_ROUTE_FOR_EVERYBODY

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Sequence

    from refractium.contract import MetadataValue
    from refractium.routing.pool import Pool
    from refractium.routing.pools import Pools
    from refractium.routing.route import Route
    from refractium.routing.rules import ListenerRules

T = TypeVar("T")


class Router:
    """What a listener does with its clients; compiled once, connections only read it.

    Args:
        pools: of every route of one transport.
        peek_buffer_size: see `Table`.
        rules: which of the routes are the listener's, and who may come in.
        faults: see `Table`.

    Attributes:
        table: from first bytes to the pool of the route they match.
        silent: the pool for clients that stay silent, if a route takes them.
        fallback: the pool for everything else, if there is one.
        access: who may come in; None for everybody.
        labels: the routes that are served.

    Raises:
        ConfigError: two routes apply under the same conditions, or both ask for the silent clients.
    """

    def __init__(
        self,
        pools: Pools,
        peek_buffer_size: int,
        rules: ListenerRules = EVERY_ROUTE_FOR_EVERYBODY,
        faults: Counter[str] | None = None,
    ) -> None:
        served = [
            (number, *one)
            for number, one in enumerate(pools.routes)
            if rules.serves(one[0].label, one[0].name)
        ]
        _refuse_duplicates([(number, route) for number, route, _ in served])
        routes = [(route, pool) for _, route, pool in served]
        candidates: dict[int, Candidate[Pool]] = {}
        for name in dict.fromkeys(route.name for route, _ in routes):
            of_name = [one for one in routes if one[0].name == name]
            selector = _Selector(of_name)
            for protocol in (protocol for route, _ in of_name for protocol in route.protocols):
                candidates[id(protocol)] = Candidate(protocol, selector.select, selector.asks_for)
        self.table: Table[Pool] = Table(candidates.values(), peek_buffer_size, faults)
        taking = [(route.on_timeout, pool) for route, pool in routes if route.takes_silent]
        # Who asks for them comes before who gets them because its server speaks first.
        self.silent = next((pool for asked, pool in taking if asked), taking[0][1] if taking else None)
        self.fallback = pools.fallback
        self.access = access_of(rules.allow, rules.deny)
        self.labels = tuple(dict.fromkeys(route.label for route, _ in routes))

    def admits(self, client: str) -> bool:
        """Whether a client with this IP address may come in."""
        return self.access is None or self.access.admits(client)


class _Selector:
    """The routes of one protocol, found in a time that does not depend on how many names they ask for.

    By sni, then by host; within each an exact name comes before a wildcard, and that before a route without
    the condition; at last, routes that ask for an alpn come before those that do not.
    """

    def __init__(self, routes: Sequence[tuple[Route, Pool]]) -> None:
        conditions = [route.conditions for route, _ in routes]
        self.asks_for = frozenset(key for one in conditions for key, names in one.items() if names)
        self._only = routes[0][1] if not self.asks_for else None
        self._by_sni: _Names[_Names[list[tuple[tuple[str, ...], Pool]]]] = _Names()
        for (_, pool), asked in zip(routes, conditions, strict=True):
            for sni in asked["sni"] or (None,):
                by_host = self._by_sni.setdefault(sni, _Names())
                for host in asked["host"] or (None,):
                    leaf = by_host.setdefault(host, [])
                    leaf.append((asked["alpn"], pool))
                    leaf.sort(key=lambda entry: not entry[0])

    def select(self, match: ProtocolMatch) -> Pool | Literal[Verdict.NO]:
        if self._only is not None:
            return self._only
        metadata = match.metadata
        offered = metadata.get("alpn", ())
        for by_host in self._by_sni.lookup(metadata.get("sni")):
            for leaf in by_host.lookup(metadata.get("host")):
                for alpn, pool in leaf:
                    if not alpn or (isinstance(offered, tuple) and not set(alpn).isdisjoint(offered)):
                        return pool
        return NO


class _Names(Generic[T]):
    """Values by host name: exact, by wildcard, or for any name and none."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._wildcard: dict[str, T] = {}
        self._any: list[T] = []

    def setdefault(self, name: str | None, value: T) -> T:
        """The value kept for `name` (``*.`` in front: for every name one label longer), else this one."""
        if name is None:
            self._any = self._any or [value]
            return self._any[0]
        if name.startswith("*."):
            return self._wildcard.setdefault(name[2:], value)
        return self._exact.setdefault(name, value)

    def lookup(self, name: MetadataValue | None) -> Iterator[T]:
        """The values that apply to `name`, the most specific first."""
        if isinstance(name, str):
            if name in self._exact:
                yield self._exact[name]
            parent = name.partition(".")[2]
            if parent in self._wildcard:
                yield self._wildcard[parent]
        yield from self._any


def _refuse_duplicates(routes: Iterable[tuple[int, Route]]) -> None:
    seen: dict[tuple[str, str, str, str], int] = {}
    silent: int | None = None
    problems = []
    for number, route in routes:
        asked = route.conditions
        for sni in asked["sni"] or ("",):
            for alpn in asked["alpn"] or ("",):
                for host in asked["host"] or ("",):
                    first = seen.setdefault((route.name, sni, alpn, host), number)
                    if first != number:
                        problems.append(
                            Problem(f"{route} is already route {first}", where=f"routes[{number}]")
                        )
        if route.on_timeout:
            if silent is not None:
                problems.append(
                    Problem(f"route {silent} has on_timeout already", where=f"routes[{number}].on_timeout")
                )
            silent = number
    if problems:
        raise ConfigError(problems)
