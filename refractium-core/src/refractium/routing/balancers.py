"""The built-in balancers. Each balancer decides in which order Refractium tries the backends of a pool."""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Final

from refractium.contract import Balancer
from refractium.contract.words import shown
from refractium.guard.faults import is_interrupt
from refractium.guard.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from refractium.contract.balancer import BalancedT
    from refractium.guard.faults import Faults

DEFAULT: Final = "round_robin"


class RoundRobin(Balancer):
    """Smooth weighted round robin: backends take turns by weight, with the turns of one backend spread out.

    Backends a, b, c with weights 5, 1, 1 take turns in the order a a b a c a a. After as many clients
    as the sum of the weights, each backend has had exactly its share of the turns.
    """

    name = "round_robin"
    summary = "each backend in turn, by its weight"

    def __init__(self) -> None:
        self._known: Sequence[object] = ()
        self._is_plain = True
        self._next = 0
        self._credit: dict[object, int] = {}

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        del client
        if backends is not self._known:
            self._known = backends
            self._is_plain = len({backend.weight for backend in backends}) == 1
        if self._is_plain:
            first = self._next if self._next < len(backends) else 0
            self._next = first + 1
        else:
            first = self._spend(backends)
        return (*backends[first:], *backends[:first]) if first else backends

    def _spend(self, backends: Sequence[BalancedT]) -> int:
        """Return the index of the backend whose turn it is, by nginx's algorithm.

        Every backend earns its weight as credit. The backend with the most credit has its turn, and pays the
        sum of all weights.
        """
        credit = self._credit
        richest, most, total = 0, -math.inf, 0
        for index, backend in enumerate(backends):
            total += backend.weight
            now = credit[backend] = credit.get(backend, 0) + backend.weight
            if now > most:
                richest, most = index, now
        credit[backends[richest]] -= total
        return richest


class LeastConnections(Balancer):
    """The backend with the lowest load (connections / weight). Backends with an equal load take turns."""

    name = "least_connections"
    summary = "the backend with the fewest connections for its weight"

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        return sorted(self._turns.order(backends, client), key=_load)


class RandomTwo(Balancer):
    """The less loaded of two backends, which are drawn at random by weight.

    The load of a backend is its connections divided by its weight. The load is nearly as even as with a
    comparison of all backends.
    """

    name = "random_two"
    summary = "of two backends at random, the one with fewer connections for its weight"

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - needs no cryptography to choose backends

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterator[BalancedT]:
        del client
        left = list(backends)
        while left:
            one = self._random.choices(left, [backend.weight for backend in left])[0]
            others = [backend for backend in left if backend is not one]
            if others:
                other = self._random.choices(others, [backend.weight for backend in others])[0]
                one = min(one, other, key=_load)
            yield one
            left.remove(one)


class SourceHash(Balancer):
    """One fixed backend for each client IP address: the same in every process and after a restart.

    Weighted rendezvous hashing: each backend draws a number for the client, and the highest number wins. When
    a backend goes down, each of its clients moves to the backend with the next highest number. No other
    client moves.
    """

    name = "source_hash"
    summary = "the same client IP address to the same backend"

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        return sorted(backends, key=lambda backend: _draw(backend, client), reverse=True)


class First(Balancer):
    """The first backend that is up, in the order of the configuration."""

    name = "first"
    summary = "the first backend that is up"

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        del client
        return backends


def _load(backend: BalancedT) -> float:
    return backend.active / backend.weight


_HASH_BYTES: Final = 8
_HASH_RANGE: Final = 1 << 8 * _HASH_BYTES


def _draw(backend: BalancedT, client: str) -> float:
    """Return the number that a backend draws for a client. The number never changes for this pair.

    The probability that a backend draws the highest number is proportional to the backend's weight. The
    number is -weight / ln(u), where u is a hash of address and client, mapped to (0, 1). Over all clients, u
    is uniformly distributed (Schindelhauer and Schomaker, Weighted Distributed Hash Tables, 2005).
    """
    digest = blake2b(f"{backend.address} {client}".encode(), digest_size=_HASH_BYTES).digest()
    return -backend.weight / math.log((int.from_bytes(digest, "big") + 0.5) / _HASH_RANGE)


class _Guarded(Balancer):
    """A balancer that is not built in, with every fault caught.

    After a fault, the order is the order of the configuration.
    """

    def __init__(self, balancer: type[Balancer], faults: Faults | None) -> None:
        self._class = balancer
        self._faults = faults
        self._balancer: Balancer = First()
        if WATCHDOG.wants_notice:
            WATCHDOG.notice()
        try:
            self._balancer = balancer()
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            self._note(error)

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        try:
            # A generator without an end must not hold up the event loop.
            ordered = tuple(islice(self._balancer.order(backends, client), len(backends) + 1))
            # By identity: another object may be equal to a backend.
            asked = set(map(id, ordered))
            if not ordered or len(ordered) > len(asked) or not asked <= set(map(id, backends)):
                raise ValueError(_problem_of(ordered, backends))  # noqa: TRY301
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            self._note(error)
            return backends
        return ordered

    def _note(self, error: BaseException) -> None:
        if self._faults is not None:
            effect = "the backends are tried in the order of the configuration"
            self._faults.note(f"balancer {self._class.name}", self._class, error, effect)
        elif is_interrupt(error):
            raise error


def _problem_of(ordered: Sequence[object], backends: Sequence[BalancedT]) -> str:
    """Return the mistake in an order that is not valid."""
    if not ordered:
        return "the order is empty"
    addresses = {id(backend): str(backend.address) for backend in backends}
    others = [shown(one) for one in ordered if id(one) not in addresses]
    if others:
        return f"the order contains an object that is not one of the backends: {others[0]}"
    return f"the order repeats a backend: {', '.join(addresses[id(one)] for one in ordered)}"


def made(balancer: type[Balancer], faults: Faults | None) -> Balancer:
    """Return an instance of a balancer. Only an instance that is not built in needs protection."""
    return balancer() if balancer in BALANCERS.values() else _Guarded(balancer, faults)


BALANCERS: Final[dict[str, type[Balancer]]] = {
    balancer.name: balancer for balancer in (RoundRobin, LeastConnections, RandomTwo, SourceHash, First)
}
"""The built-in balancers, by the name that the setting `balance` contains."""
