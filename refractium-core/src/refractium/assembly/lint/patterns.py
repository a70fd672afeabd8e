"""Warnings about protocols that patterns define, beside the other protocols of a listener."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import access_of, models_of, parse_network
from refractium.assembly.lint.order import named
from refractium.assembly.lint.rules import (
    DELAYED_MESSAGE,
    PATTERN_TAKES_PROTOCOL,
    SHADOWED_PATTERN,
    SHORT_PATTERN,
    Warned,
)
from refractium.assembly.lint.samples import samples_of
from refractium.contract import ProtocolMatch, Strength, Transport
from refractium.identify import Waiting
from refractium.identify.patterns import Hex, PatternProtocol, Regex, compile_patterns
from refractium.routing.pools import Pools
from refractium.routing.reach import bare
from refractium.routing.router import Router

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.assembly.resolve import Resolved
    from refractium.config import RouteConfig
    from refractium.contract import Protocol
    from refractium.identify.patterns import Pattern
    from refractium.routing import Route
    from refractium.routing.judge import PlacedRoutes
    from refractium.routing.pool import Pool
    from refractium.routing.rules import ListenerRules

_MOST_ADDRESSES: Final = 32
"""Largest number of model addresses for which to ask the router of a listener."""


def doubtful_patterns(resolved: Resolved) -> Iterator[Warned]:
    """Yield the warnings about patterns of each listener, and about messages that wait for a protocol."""
    overlaid = resolved.overlaid
    configs = dict(overlaid.routes)
    found: dict[Warned, None] = {}
    for _, listener in overlaid.listeners:
        for transport in listener.transports:
            served = [
                (path, route)
                for path, route in resolved.routes
                if route.transport is transport and listener.rules.serves(route.label, route.name)
            ]
            if len({route.name for _, route in served}) > 1:
                size = overlaid.server.peek_buffer_size
                one = _Listener(served, configs, listener.rules, size)
                found.update(dict.fromkeys(one.warnings(overlaid.server.peek_grace_ms)))
    yield from found


class _Listener:
    """The routes of a listener for one transport, and the routers for different client addresses."""

    def __init__(
        self, routes: PlacedRoutes, configs: dict[str, RouteConfig], rules: ListenerRules, size: int
    ) -> None:
        self._routes = routes
        self._transport = routes[0][1].transport
        self._size = size
        self._patterns: list[tuple[str, Route, int, Pattern]] = [
            (path, route, at, pattern)
            for path, route in routes
            if path in configs
            for at, pattern in enumerate(configs[path].pattern_set)
        ]
        pools = Pools([bare(route, route.protocol, route.conditions) for _, route in routes])
        self._placed: dict[Pool, tuple[str, Route]] = dict(zip(pools, routes, strict=True))
        router = Router(pools, size)
        texts = {text for _, route in routes for text in (*route.clients, *route.allow, *route.deny)}
        addresses = islice(
            models_of(map(parse_network, (*texts, *rules.allow, *rules.deny))), _MOST_ADDRESSES
        )
        several = [router.for_client(one) for one in addresses if _admits(rules, one)]
        self._routers = list(dict.fromkeys(several))

    def warnings(self, grace_ms: int) -> Iterator[Warned]:
        """Yield the warnings about this listener."""
        for path, route, at, pattern in self._patterns:
            where = f"{path}.patterns[{at}]"
            yield from self._of_pattern(where, route, pattern, grace_ms)
        for path, route in self._routes:
            for protocol in route.protocols:
                if not isinstance(protocol, PatternProtocol):
                    for sample in samples_of(protocol):
                        yield from self._of_sample(path, route, protocol, sample, grace_ms)

    def _of_pattern(self, where: str, route: Route, pattern: Pattern, grace_ms: int) -> Iterator[Warned]:
        if isinstance(pattern, Regex):
            return
        strengths = {
            one.strength for one in compile_patterns(route.name, self._transport, (pattern,), self._size)
        }
        if strengths == {Strength.WEAK}:
            message = "this pattern is so short that other clients can contain it by chance"
            yield Warned(SHORT_PATTERN, where, f"{message}: write at least three bytes, at a fixed place")
        if isinstance(pattern, Hex) and pattern.offset:
            return
        rivals = [self._winner(router, route, pattern.data) for router in self._with(route)]
        if rivals and None not in rivals:
            rival = next(filter(None, rivals))
            message = f"clients that begin with this pattern go to {named(*rival)}"
            yield Warned(SHADOWED_PATTERN, where, f"{message}: change one of the patterns")
        elif strengths == {Strength.WEAK}:
            yield from self._delayed(where, route, pattern.data, grace_ms)

    def _with(self, route: Route) -> Iterator[Router]:
        """Yield the routers of clients for whom a route is open."""
        for router in self._routers:
            if any(self._placed[pool][1] is route for pool in router.pools):
                yield router

    def _winner(self, router: Router, route: Route, data: bytes) -> tuple[str, Route] | None:
        """Return the route of other patterns that gets all clients whose bytes begin with `data`.

        A match never changes with further bytes (`Protocol.identify`).
        """
        decision = router.table.decide(data)
        if not isinstance(decision, tuple):
            return None
        path, winner = self._placed[decision[0]]
        is_other = winner.name != route.name and isinstance(winner.protocols[0], PatternProtocol)
        return (path, winner) if is_other else None

    def _of_sample(
        self, path: str, route: Route, protocol: Protocol, sample: bytes, grace_ms: int
    ) -> Iterator[Warned]:
        for router in self._with(route):
            decision = router.table.decide(sample, final=True)
            if isinstance(decision, tuple):
                place, winner = self._placed[decision[0]]
                if isinstance(winner.protocols[0], PatternProtocol) and self._is_first(
                    router, winner.protocols, protocol, sample
                ):
                    where = self._pattern_of(place, sample)
                    message = (
                        f"a first message of {named(path, route)} matches this pattern and goes to this route"
                    )
                    remedy = f"write bytes with which no client of {route.name} begins"
                    yield Warned(PATTERN_TAKES_PROTOCOL, where, f"{message}: {remedy}")
        if not protocol.server_first:  # ordinary clients of such a protocol wait for the server
            yield from self._delayed(path, route, sample, grace_ms)

    def _is_first(
        self, router: Router, patterns: Sequence[Protocol], protocol: Protocol, data: bytes
    ) -> bool:
        """Return whether one of `patterns` matches `data` and is asked before `protocol`."""
        for answer in router.table.explain(data):
            if answer.protocol is protocol:
                return False
            if answer.protocol in patterns and isinstance(answer.said, ProtocolMatch):
                return True
        return False

    def _pattern_of(self, path: str, data: bytes) -> str:
        """Return the key path of the pattern of a route that matches `data`."""
        for place, route, at, pattern in self._patterns:
            if place == path and any(
                isinstance(one.identify(data), ProtocolMatch)
                for one in compile_patterns(route.name, self._transport, (pattern,), self._size)
            ):
                return f"{path}.patterns[{at}]"
        return path

    def _delayed(self, where: str, route: Route, data: bytes, grace_ms: int) -> Iterator[Warned]:
        """Yield a warning if a first message waits for a protocol that is asked before its own protocol."""
        if self._transport is not Transport.TCP:
            return
        for router in self._with(route):
            decision = router.table.decide(data)
            if not (isinstance(decision, Waiting) and decision.is_matched):
                continue
            for answer in router.table.explain(data):
                if answer.protocol in route.protocols and isinstance(answer.said, ProtocolMatch):
                    break
                if isinstance(answer.now, Waiting):
                    rival = next(one for one in self._routes if answer.protocol in one[1].protocols)
                    message = (
                        f"a client that sends only such a short message waits {grace_ms} ms for "
                        f"{named(*rival)}, whose messages can begin in the same way"
                    )
                    remedy = "serve the routes on different listeners, or lower peek_grace_ms"
                    yield Warned(DELAYED_MESSAGE, where, f"{message}: {remedy}")
                    return


def _admits(rules: ListenerRules, address: str) -> bool:
    access = access_of(rules.allow, rules.deny)
    return access is None or access.admits(address)
