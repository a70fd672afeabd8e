"""The rules of one listener: the routes and the clients that the listener serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import network_problems
from refractium.identify.everything import FALLBACK
from refractium.problems import Problem, unknown_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


@dataclass(frozen=True)
class ListenerRules:
    """The rules of one listener. By default a listener serves every route to every client.

    Args:
        routes: the labels of the routes that the listener serves; None for all routes. A protocol's name
            stands for all routes of that protocol. Every listener serves the route that ``fallback_tcp`` or
            ``fallback_udp`` defines.
        allow: the addresses and networks whose clients the listener serves; empty for all clients.
        deny: the addresses and networks whose clients the listener refuses, even if `allow` contains these
            addresses.
    """

    routes: Sequence[str] | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()

    def problems(self, labels: Collection[str]) -> Iterator[Problem]:
        """Yield the problems of the rules. `labels` contains the labels and the protocols of all routes."""
        for at, name in enumerate(self.routes or ()):
            if name not in labels:
                yield Problem(unknown_name(name, labels), where=f"routes[{at}]")
        yield from network_problems({"allow": self.allow, "deny": self.deny})

    def serves(self, label: str, protocol: str) -> bool:
        """Return whether the listener serves a route with this label and protocol."""
        return self.routes is None or label in self.routes or protocol in self.routes or protocol == FALLBACK


EVERY_ROUTE_FOR_EVERYBODY: Final = ListenerRules()
