"""What has happened since the start, as plain integers that only grow.

Keys are names of the configuration or fixed words, never anything from the wire, so there is a bounded number
of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium.proxy.outcome import Ended

NO_ROUTE: Final = "-"
"""Stands for the route of those that have none. No protocol can be called so."""

DENIED: Final = "denied"
"""Stands among the names of limits for the access rules of a listener or, of datagrams, of a route."""
REJECTED: Final = "rejected"
"""The same for a route that rejects datagrams."""


def why_refused(reason: str) -> str:
    """A reason as logs say it."""
    return {DENIED: "it is denied", REJECTED: "its route rejects it"}.get(reason, f"{reason} is reached")


BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds (s) of the buckets for the time that identification takes; one more bucket has none."""


class Outcome(StrEnum):
    """How the identification of a connection came out."""

    IDENTIFIED = "identified"
    SILENT = "silent"
    """It went to the route for clients that stay silent."""
    FALLBACK = "fallback"
    NO_ROUTE = "no_route"
    """Nothing matched, and there is no fallback."""
    LEFT = "left"
    """The client left before it was known what it speaks."""


@dataclass(slots=True)
class Traffic:
    """What has ended of one route."""

    ended: Counter[Ended] = field(default_factory=Counter)
    """How many connections or sessions, by how they ended."""
    bytes_up: int = 0
    """Client to backend."""
    bytes_down: int = 0


@dataclass(slots=True)
class _Common:
    """What TCP and UDP have in common."""

    refused: int = 0
    """Connections closed at accept, and datagrams that would have begun a session, because of a limit or a
    rule."""
    refusals: Counter[str] = field(default_factory=Counter)
    """`refused` by the limit, which is the setting's name, or `DENIED`, or `REJECTED`."""
    routes: dict[str, Traffic] = field(default_factory=dict)
    """What has finished, by the route's label."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """How identifications came out."""

    @property
    def finished(self) -> int:
        """How many have ended."""
        return sum(traffic.ended.total() for traffic in self.routes.values())

    @property
    def bytes_up(self) -> int:
        """Client to backend, of what has finished."""
        return sum(traffic.bytes_up for traffic in self.routes.values())

    @property
    def bytes_down(self) -> int:
        """Backend to client, of what has finished."""
        return sum(traffic.bytes_down for traffic in self.routes.values())

    def refuse(self, reason: str) -> None:
        """Count one that was kept out."""
        self.refused += 1
        self.refusals[reason] += 1

    def finish(self, route: str, how: Ended, up: int, down: int) -> None:
        """Count one that has ended, with its bytes."""
        traffic = self.routes.get(route)
        if traffic is None:
            traffic = self.routes[route] = Traffic()
        traffic.ended[how] += 1
        traffic.bytes_up += up
        traffic.bytes_down += down


@dataclass(slots=True)
class Counters(_Common):
    """Of TCP. ``accepted == refused + finished + active`` at any time."""

    accepted: int = 0
    loops: int = 0
    """Not connected, because the target was this proxy's own listener."""
    seconds: float = 0.0
    """Spent on identifications, in all."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """How many took up to each of `BOUNDS`, but longer than the bound before it; at last, longer than all."""

    def decide(self, outcome: Outcome, seconds: float) -> None:
        """Count one identification."""
        self.outcomes[outcome] += 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1


@dataclass(slots=True)
class UdpCounters(_Common):
    """Of UDP. ``sessions == finished + active`` at any time."""

    sessions: int = 0
    unrouted: int = 0
    """Datagrams that no route matched, without a fallback, or whose target is this proxy itself."""
    dropped: int = 0
    """Datagrams that a socket did not take, or whose backend could not be reached."""
