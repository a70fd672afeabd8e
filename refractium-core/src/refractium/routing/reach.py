"""Which clients reach a route: the answers of the router that serves a listener to model clients.

A model client stands for all clients of its kind. For an address, the model is an address that lies in the
same networks. For a pattern, the model is a value that only patterns match which match every value of the
pattern: in place of each wildcard, it has a character that no pattern contains. So if a route gets no model
client, then the route gets no client.

This reasoning does not hold for a regex, because a regex can match some values of another pattern only. So
the model of a regex is a character, and in the router that answers here, a regex matches only its own model.
This router takes clients away from a route less often than the router that serves. So the answer that no
client reaches a route stays true.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, count, islice, product
from typing import TYPE_CHECKING, Final, TypeAlias

from refractium.addresses.networks import Networks, models_of, parse_network
from refractium.contract import NO, Identification, MetadataKind, Protocol, ProtocolMatch, Transport
from refractium.routing.conditions import ConditionTable
from refractium.routing.names import NameRegex
from refractium.routing.pools import Pools
from refractium.routing.route import Route
from refractium.routing.router import Router

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from refractium.contract import MetadataValue
    from refractium.routing.conditions import ConditionPattern, Conditions
    from refractium.routing.pool import Pool
    from refractium.routing.rules import ListenerRules

Entry: TypeAlias = "tuple[str, ConditionPattern]"
"""A metadata key with one of the patterns for the key, or ``client`` with one of the networks."""
_MOST_ROUTES: Final = 20_000
"""Largest number of routes that the routers for the model addresses of a listener contain together. Beyond
this number, which takes about 0.3 s, no further address is tried, and nothing is said about the remaining
routes."""
_MOST_MODELS: Final = 2_000
"""Largest number of model clients for one pattern and address."""
_MOST_PAIRS: Final = 5_000
"""Largest number of pairs of routes of a listener to compare, which takes about 0.1 s."""
_FIRST_MODEL: Final = 0xF0000
"""The first character of a private use area of Unicode, which names and texts do not contain by chance."""


@dataclass(slots=True)
class Reach:
    """The clients that reach a route, of all listeners that serve the route.

    Attributes:
        route: the route.
        is_judged: whether all model clients were tried. Otherwise, the other attributes may lack clients.
        is_served: whether a listener serves the route.
        is_admitted: whether a listener serves a client whose address meets the condition `client`.
        is_reached: whether a client reaches the route, by first bytes or by silence.
        is_open: whether the access rules of the route admit a client that reaches the route.
        reached: the entries of conditions by which clients reach the route: each metadata key with a pattern,
            and ``client`` with a network.
        rivals: the numbers of the routes that clients of this route reach instead.
        rivals_for: the number of such a route, by the entry of a condition.
        silent_rivals: the numbers of the routes that get the silent clients of a listener, if the listener
            gives none to this route, although this route takes silent clients.
        overlaps: the number of a route that gets clients which match both routes, although neither route has
            the conditions of the other; None if there is no such route.
    """

    route: Route
    is_judged: bool = True
    is_served: bool = False
    is_admitted: bool = False
    is_reached: bool = False
    is_open: bool = False
    reached: set[Entry] = field(default_factory=set)
    rivals: dict[int, None] = field(default_factory=dict)
    rivals_for: dict[Entry, int] = field(default_factory=dict)
    silent_rivals: dict[int, None] = field(default_factory=dict)
    overlaps: int | None = None

    def note(self, entries: Iterable[Entry], *, is_open: bool) -> None:
        """Note that a client reaches the route by these entries of conditions."""
        self.is_reached = True
        self.is_open |= is_open
        self.reached.update(entries)


def reaches(routes: Sequence[Route], listeners: Iterable[tuple[Transport, ListenerRules]]) -> list[Reach]:
    """Return the clients that reach each route.

    Args:
        routes: the routes of all transports, which `refractium.routing.judge` has accepted.
        listeners: the rules of each listener, once for each of its transports.
    """
    found = [Reach(route) for route in routes]
    for transport, rules in listeners:
        numbers = [
            at
            for at, route in enumerate(routes)
            if route.transport is transport and rules.serves(route.label, route.name)
        ]
        if numbers:
            _Listener(found, numbers, rules).judge()
    return found


def bare(route: Route, protocol: Protocol | Sequence[Protocol], conditions: Conditions) -> Route:
    """Return a route that is chosen in the same cases as `route`, but has no other options."""
    return Route(
        protocol,
        "127.0.0.1:1",
        on_timeout=route.on_timeout,
        id=route.id,
        allow=route.allow,
        deny=route.deny,
        client=route.client,
        match=conditions,
    )


class _StandIn(Protocol):
    """A protocol that gives any answer, in place of the protocols of one name."""

    max_bytes = 1
    answer: Identification = NO

    def __init__(self, route: Route, kinds: Mapping[str, MetadataKind]) -> None:
        self.name = route.name
        self.transport = route.transport
        self.metadata_keys = kinds
        self.server_first = any(one.server_first for one in route.protocols)

    def identify(self, data: bytes) -> Identification:  # noqa: ARG002 - the answer is given
        return self.answer


class _Models:
    """The model of each pattern: a value that only patterns match which match every value of the pattern."""

    def __init__(self, routes: Iterable[Route]) -> None:
        patterns = {one for route in routes for several in route.conditions.values() for one in several}
        regexes = [one for one in patterns if isinstance(one, NameRegex)]
        used = {character for one in patterns if isinstance(one, str) for character in one}
        unused = (character for character in map(chr, count(_FIRST_MODEL)) if character not in used)
        self._any = next(unused)
        self._of_regexes = dict(zip(sorted(regexes, key=str), unused, strict=False))

    def pattern(self, pattern: ConditionPattern) -> ConditionPattern:
        """Return a pattern in the form for the router; a regex matches only its own model."""
        return NameRegex(self._of_regexes[pattern]) if isinstance(pattern, NameRegex) else pattern

    def value(self, kind: MetadataKind, pattern: ConditionPattern) -> MetadataValue:
        """Return the model of a pattern as a value of a kind."""
        if isinstance(pattern, bool):
            return pattern
        if isinstance(pattern, NameRegex):
            text = self._of_regexes[pattern]
        elif kind in {MetadataKind.HOST_NAME, MetadataKind.HOST} and pattern.startswith("**."):
            text = f"{self._any}.{self._any}{pattern[2:]}"
        else:
            text = pattern.replace("*", self._any)
        return (text,) if kind is MetadataKind.TEXTS else text


class _Listener:
    """The router of a listener for one transport, with stand-ins for its protocols."""

    def __init__(self, found: list[Reach], numbers: Sequence[int], rules: ListenerRules) -> None:
        self._found = found
        self._numbers = numbers
        routes = [found[at].route for at in numbers]
        self._models = _Models(routes)
        self._kinds: dict[str, dict[str, MetadataKind]] = defaultdict(dict)
        self._asked: dict[str, set[str]] = defaultdict(set)
        for route in routes:
            self._kinds[route.name].update(route.kinds)
            self._asked[route.name].update(route.conditions)
        self._stand_ins: dict[str, dict[bool, _StandIn]] = defaultdict(dict)
        pools = Pools(list(map(self._with_stand_in, routes)))
        self._pools = pools
        self._number_of = {pool: at for at, pool in zip(numbers, pools, strict=True)}
        # These routes are already the routes of the listener.
        self._router = Router(pools, 1, replace(rules, routes=None))
        self._clients = {
            at: [(("client", text), Networks([text])) for text in route.clients]
            for at, route in zip(numbers, routes, strict=True)
        }
        self._routers: dict[Router, None] = {}
        self._silent: dict[int, int] = {}
        self._gets_silent: set[int] = set()
        lists = [rules.allow, rules.deny, *(one for route in routes for one in _networks_of(route))]
        self._addresses = models_of(map(parse_network, dict.fromkeys(chain.from_iterable(lists))))

    def _with_stand_in(self, route: Route) -> Route:
        """Return a route that is chosen in the same cases as `route`, but has a stand-in, and no options."""
        protocol: Protocol = route.protocols[0]
        if not route.takes_the_rest:
            is_first = any(one.server_first for one in route.protocols)
            stand_in = _StandIn(route, self._kinds[route.name])
            protocol = self._stand_ins[route.name].setdefault(is_first, stand_in)
        patterns = {key: tuple(map(self._models.pattern, those)) for key, those in route.conditions.items()}
        return bare(route, protocol, patterns)

    def judge(self) -> None:
        """Try model clients until every entry of every route is reached, or no model is left."""
        left = _MOST_ROUTES
        for at in self._numbers:
            self._found[at].is_served = True
        for address in self._addresses:
            if left <= 0:
                for at in self._numbers:
                    self._found[at].is_judged = False
                break
            if self._router.admits(address):
                router = self._router.for_client(address)
                self._routers.setdefault(router)
                left -= len(router.pools)
                for pool in router.pools:
                    self._judge_route(self._number_of[pool], pool, router, address)
        self._find_overlaps()
        for at, rival in self._silent.items():
            if at not in self._gets_silent:
                self._found[at].silent_rivals[rival] = None

    def _find_overlaps(self) -> None:
        """Note the routes of one protocol that a model client can match both, if their keys decide."""
        groups: dict[str, dict[frozenset[str], list[tuple[Route, Pool]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for route, pool in self._pools.routes:
            if not route.takes_the_rest:
                groups[route.name][_keys_of(route)].append((route, pool))
        left = _MOST_PAIRS
        for by_keys in groups.values():
            for (keys, some), (others, rest) in combinations(by_keys.items(), 2):
                if keys <= others or others <= keys:
                    continue
                for pair in product(some, rest):
                    left -= 1
                    if left < 0:
                        return
                    self._judge_pair(*pair)

    def _judge_pair(self, one: tuple[Route, Pool], other: tuple[Route, Pool]) -> None:
        numbers = [self._number_of[pool] for _, pool in (one, other)]
        reaches = [self._found[at] for at in numbers]
        first, second = (reach.route for reach in reaches)
        if _target(first) == _target(second) or None not in [reach.overlaps for reach in reaches]:
            return
        router = next((router for router in self._routers if {one[1], other[1]} <= set(router.pools)), None)
        if router is None:
            return
        tables = [
            ConditionTable(first.kinds, [(route.conditions, route)], [route]) for route, _ in (one, other)
        ]
        for metadata in islice(self._in_common(first, second), _MOST_MODELS):
            match = ProtocolMatch(metadata)
            if any(table.select(match) is NO for table in tables):
                continue
            chosen = self._chosen(router, first, metadata)
            for at, pool, reach in zip(reversed(numbers), (one[1], other[1]), reversed(reaches), strict=True):
                if chosen is pool and reach.overlaps is None:
                    reach.overlaps = numbers[1 - numbers.index(at)]
            return

    def _in_common(self, first: Route, second: Route) -> Iterator[Mapping[str, MetadataValue]]:
        """Yield the metadata of model clients that may meet the conditions of two routes."""
        kinds = self._kinds[first.name]
        values = {
            key: [
                self._models.value(kinds[key], one)
                for route in (first, second)
                for one in route.conditions.get(key, ())
            ]
            for key in {**first.conditions, **second.conditions}
        }
        for several in product(*values.values()):
            yield dict(zip(values, several, strict=True))

    def _judge_route(self, at: int, pool: Pool, router: Router, address: str) -> None:
        reach = self._found[at]
        route = reach.route
        reach.is_admitted = True
        here = [entry for entry, networks in self._clients[at] if address in networks]
        if route.takes_silent and router.silent is not None and route.transport is Transport.TCP:
            if router.silent is pool:
                self._gets_silent.add(at)
                reach.note(here, is_open=pool.admits(address))
            else:
                self._silent.setdefault(at, self._number_of[router.silent])
        entries = [(key, one) for key, patterns in route.conditions.items() for one in patterns]
        unmet = [one for one in entries if one not in reach.reached]
        if reach.is_open and not unmet and (entries or reach.is_reached) and reach.reached.issuperset(here):
            return
        tried: Sequence[Entry | None] = unmet or entries or [None]
        for one in tried:
            self._judge_entry(reach, one, pool, router, here, address)

    def _judge_entry(
        self,
        reach: Reach,
        entry: Entry | None,
        pool: Pool,
        router: Router,
        here: Sequence[Entry],
        address: str,
    ) -> None:
        """Try the models of clients that meet all conditions of a route, one condition by `entry`."""
        entries = here if entry is None else [*here, entry]
        for tried, metadata in enumerate(self._models_of(reach.route, entry)):
            if tried > _MOST_MODELS:
                reach.is_judged = False
                return
            chosen = self._chosen(router, reach.route, metadata)
            if chosen is pool:
                reach.note(entries, is_open=pool.admits(address))
                return
            if chosen is not None:
                rival = self._number_of[chosen]
                reach.rivals[rival] = None
                for one in entries:
                    reach.rivals_for.setdefault(one, rival)

    def _models_of(self, route: Route, entry: Entry | None) -> Iterator[Mapping[str, MetadataValue]]:
        """Yield the metadata of model clients. A key of a flag without a condition has both values."""
        values: dict[str, list[MetadataValue | None]] = {}
        for key, kind in self._kinds[route.name].items():
            if key not in self._asked[route.name]:
                continue
            if entry is not None and entry[0] == key:
                values[key] = [self._models.value(kind, entry[1])]
            elif key in route.conditions:
                values[key] = [self._models.value(kind, one) for one in route.conditions[key]]
            else:
                values[key] = [None, True] if kind is MetadataKind.FLAG else [None]
        for several in product(*values.values()):
            yield {key: value for key, value in zip(values, several, strict=True) if value is not None}

    def _chosen(self, router: Router, route: Route, metadata: Mapping[str, MetadataValue]) -> Pool | None:
        if route.takes_the_rest:
            return router.fallback
        stand_ins = self._stand_ins[route.name].values()
        for one in stand_ins:
            one.answer = ProtocolMatch(metadata)
        decision = router.table.decide(b"x", final=True)
        for one in stand_ins:
            one.answer = NO
        return decision[0] if isinstance(decision, tuple) else None


def _keys_of(route: Route) -> frozenset[str]:
    return frozenset((*route.conditions, *(["client"] if route.clients else [])))


def _target(route: Route) -> tuple[object, ...]:
    return route.members, route.action, tuple(route.allow), tuple(route.deny)


def _networks_of(route: Route) -> tuple[Sequence[str], ...]:
    return route.clients, route.allow, route.deny
