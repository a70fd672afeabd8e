"""Counters of events since the start of the engine: plain numbers that only grow.

Every key of a counter is a name from the configuration or a fixed word, never a value from the wire. So the
number of keys is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium.proxy.summary import Ended

NO_ROUTE: Final = "-"
"""The route label of connections without a route. No protocol can have this name."""

DENIED: Final = "denied"
"""The reason of a refusal by the access rules of a listener or, for datagrams, of a route.

Every reason except `DENIED` and `REJECTED` is the name of a setting whose limit is reached.
"""
REJECTED: Final = "rejected"
"""The reason of a refusal by a route that rejects datagrams."""


def why_refused(reason: str) -> str:
    """Return the reason of a refusal in the words of a log line."""
    texts = {DENIED: "access rules deny this address", REJECTED: "the route rejects all of its clients"}
    return texts.get(reason, f"{reason} is reached")


BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds (s) of the buckets for identification times. One more bucket has no upper bound."""


class Outcome(StrEnum):
    """The result of the identification of a connection or session."""

    IDENTIFIED = "identified"
    SILENT = "silent"
    """The client stayed silent, and the connection was sent to the route for silent clients."""
    FALLBACK = "fallback"
    RESUMED = "resumed"
    """The datagram matched no route, but its client continues an earlier UDP session (`PastSessions`)."""
    NO_ROUTE = "no_route"
    """No route matched, and no fallback is configured."""
    TOO_LARGE = "too_large"
    """A protocol recognised the client, but would need more bytes than it reads to know the route."""
    UNDECIDED = "undecided"
    """A protocol recognised the client, but the client's bytes ended or paused before the route was known."""
    LEFT = "left"
    """The client left before its protocol was known."""


@dataclass(slots=True)
class Traffic:
    """The finished connections or sessions of one route."""

    ended: Counter[Ended] = field(default_factory=Counter)
    """The numbers of connections or sessions, by the way in which they ended."""
    bytes_up: int = 0
    """Bytes from client to backend."""
    bytes_down: int = 0


@dataclass(slots=True)
class _Common:
    """The counters that TCP and UDP have in common."""

    refused: int = 0
    """The number of refusals because of a limit or a rule: connections closed before identification, and
    datagrams that began no session."""
    refusals: Counter[str] = field(default_factory=Counter)
    """`refused` by reason: the name of the setting whose limit is reached, `DENIED` or `REJECTED`."""
    routes: dict[str, Traffic] = field(default_factory=dict)
    """The finished connections or sessions, by the route's label."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """The numbers of identifications, by their result."""

    @property
    def finished(self) -> int:
        """The number of finished connections or sessions."""
        return sum(traffic.ended.total() for traffic in self.routes.values())

    @property
    def bytes_up(self) -> int:
        """Bytes from client to backend of all finished connections or sessions."""
        return sum(traffic.bytes_up for traffic in self.routes.values())

    @property
    def bytes_down(self) -> int:
        """Bytes from backend to client of all finished connections or sessions."""
        return sum(traffic.bytes_down for traffic in self.routes.values())

    def refuse(self, reason: str) -> None:
        """Count one refusal, in total and by its reason."""
        self.refused += 1
        self.refusals[reason] += 1

    def finish(self, route: str, how: Ended, up: int, down: int) -> None:
        """Count one finished connection or session, with its bytes."""
        traffic = self.routes.get(route)
        if traffic is None:
            traffic = self.routes[route] = Traffic()
        traffic.ended[how] += 1
        traffic.bytes_up += up
        traffic.bytes_down += down


@dataclass(slots=True)
class TcpCounters(_Common):
    """The counters of TCP: ``accepted == refused + finished + active`` at any time."""

    accepted: int = 0
    loops: int = 0
    """The number of targets that dials skipped because the targets are this proxy's own listeners."""
    seconds: float = 0.0
    """Seconds that all identifications together have taken."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """The numbers of identifications, by their duration.

    Entry ``i`` counts durations up to ``BOUNDS[i]`` that are longer than the previous bound. The last entry
    counts durations longer than every bound.
    """

    def decide(self, outcome: Outcome, seconds: float) -> None:
        """Count one identification, with its result and its duration."""
        self.outcomes[outcome] += 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1


@dataclass(slots=True)
class UdpCounters(_Common):
    """The counters of UDP: ``sessions == finished + active`` at any time."""

    sessions: int = 0
    unrouted: int = 0
    """The number of datagrams that matched no route and found no fallback, or whose source or target is this
    proxy itself. During a drain, datagrams without a session count as well."""
    dropped: int = 0
    """The number of datagrams that the kernel did not send, or for which the session got no socket."""
