"""The rules of one listener: the routes and the clients that the listener serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from refractium.addresses.networks import network_problems
from refractium.identify.everything import FALLBACK
from refractium.problems import Problem, in_toml_words, unknown_name
from refractium.settings import Milliseconds

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
        peek_timeout_ms: the time (ms) within which a client must show its protocol, instead of
            `Settings.peek_timeout_ms`.
    """

    routes: Sequence[str] | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    peek_timeout_ms: int | None = None

    def problems(self, labels: Collection[str]) -> Iterator[Problem]:
        """Yield the problems of the rules. `labels` contains the labels and the protocols of all routes."""
        for at, name in enumerate(self.routes or ()):
            if name == FALLBACK and name not in labels:
                message = "every listener serves fallback_tcp and fallback_udp: leave this name out"
                yield Problem(message, where=f"routes[{at}]")
            elif name not in labels:
                yield Problem(unknown_name(name, labels), where=f"routes[{at}]")
        yield from network_problems({"allow": self.allow, "deny": self.deny})
        if self.peek_timeout_ms is not None:
            try:
                msgspec.convert(self.peek_timeout_ms, Milliseconds)
            except msgspec.ValidationError as error:
                yield Problem(in_toml_words(error)[1], where="peek_timeout_ms")

    def serves(self, label: str, protocol: str) -> bool:
        """Return whether the listener serves a route with this label and protocol."""
        return self.routes is None or label in self.routes or protocol in self.routes or protocol == FALLBACK


EVERY_ROUTE_FOR_EVERYBODY: Final = ListenerRules()
