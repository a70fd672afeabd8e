"""What one listener does that others do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.addresses.networks import network_problems
from refractium.problems import Problem, unknown_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


@dataclass(frozen=True)
class ListenerRules:
    """By default a listener serves every route, to everybody.

    Args:
        routes: the labels of those it serves: their ids, or the names of protocols for all routes of these.
            None for all. The fallback is every listener's.
        allow: the addresses and networks whose clients it serves; none for all.
        deny: those whose clients it does not serve, even if they are allowed.
    """

    routes: Sequence[str] | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()

    def problems(self, labels: Collection[str]) -> Iterator[Problem]:
        """What is wrong, where these are the labels and the protocols of all routes."""
        for at, name in enumerate(self.routes or ()):
            if name not in labels:
                yield Problem(unknown_name(name, labels), where=f"routes[{at}]")
        yield from network_problems(self.allow, self.deny)

    def serves(self, label: str, protocol: str) -> bool:
        """Whether a route is among those that it serves."""
        return self.routes is None or label in self.routes or protocol in self.routes


EVERY_ROUTE_FOR_EVERYBODY: Final = ListenerRules()
