"""What is to be said about a configuration whose every value is valid by itself.

Everything here gives pairs of a key path and a message; who knows the file adds where that is.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final, TypeAlias

from refractium.address import Address, is_own_address
from refractium.contract import Transport
from refractium.identify.patterns import compile_patterns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.config.model import RouteConfig, ServerConfig

Finding: TypeAlias = tuple[str, str]
Routes: TypeAlias = "Sequence[tuple[str, RouteConfig]]"
"""Routes, each with the key path or flag that it comes from."""

_LONG_PEEK_MS: Final = 5_000
_MANY_PER_IP: Final = 200


def problems(server: ServerConfig, routes: Routes) -> Iterator[Finding]:
    """What makes these routes unusable together, or with these settings."""
    for path, route in routes:
        yield from _unusable_patterns(path, route, server.peek_buffer_size)
        if route.transport is Transport.UDP:
            for place, backend in _backends(path, route):
                if backend.is_unix:
                    yield place, "a unix socket takes no datagrams here: write HOST:PORT"
    if server.fallback_udp is not None and Address.parse(server.fallback_udp).is_unix:
        yield "server.fallback_udp", "a unix socket takes no datagrams here: write HOST:PORT"
    yield from _duplicates(routes)
    yield from _rivals_for_silence(routes)


def warnings(server: ServerConfig, routes: Routes) -> Iterator[Finding]:
    """What is allowed, and probably not meant."""
    if server.peek_timeout_ms > _LONG_PEEK_MS:
        yield (
            "server.peek_timeout_ms",
            f"over {_LONG_PEEK_MS} ms, silent clients can hold many connections open",
        )
    if server.max_connections_per_ip >= server.max_connections:
        yield "server.max_connections_per_ip", "one client can take all of max_connections"
    elif server.max_connections_per_ip > _MANY_PER_IP:
        yield "server.max_connections_per_ip", f"over {_MANY_PER_IP}, it hardly limits a single client"
    targets = [
        (f"server.{key}", Address.parse(text))
        for key, text in (("fallback_tcp", server.fallback_tcp), ("fallback_udp", server.fallback_udp))
        if text is not None
    ]
    for path, route in routes:
        targets.extend(_backends(path, route))
    for path, route in routes:
        yield from _repeated_backends(path, route)
    for place, address in targets:
        if is_own_address(address, server.bind, server.port):
            yield place, f"{address} is what this server itself listens on; it will never be dialled"


def _backends(path: str, route: RouteConfig) -> Iterator[tuple[str, Address]]:
    for index, address in enumerate(route.backends):
        yield (f"{path}.forward_to" + (f"[{index}]" if isinstance(route.forward_to, tuple) else "")), address


def _repeated_backends(path: str, route: RouteConfig) -> Iterator[Finding]:
    seen: set[Address] = set()
    for place, address in _backends(path, route):
        if address in seen:
            yield place, f"{address} is in this route already: give it a weight if it is to have more clients"
        seen.add(address)


def _unusable_patterns(path: str, route: RouteConfig, peek_buffer_size: int) -> Iterator[Finding]:
    for index, pattern in enumerate(route.pattern_set):
        try:
            compile_patterns(route.name, Transport.TCP, (pattern,), peek_buffer_size)
        except ValueError as error:
            yield f"{path}.patterns[{index}]", str(error)


def _duplicates(routes: Routes) -> Iterator[Finding]:
    """Routes of one protocol that some client would meet both of, so that only their order would decide.

    A route without a condition is no duplicate of one with it: it takes what is left over.
    """
    seen: dict[tuple[str | None, ...], list[tuple[str, RouteConfig]]] = {}
    for path, route in routes:
        rival = None
        for conditions in product(route.snis or (None,), route.alpns or (None,), route.hosts or (None,)):
            same = seen.setdefault((route.name, *conditions), [])
            found = next((one for one in same if _share_transport(one[1], route)), None)
            if found is None:
                same.append((path, route))
            elif found[1] is not route:
                rival = rival or found
        if rival is not None:
            yield path, f"the same protocol and conditions as {rival[0]}: put all backends into one route"


def _rivals_for_silence(routes: Routes) -> Iterator[Finding]:
    takers: list[tuple[str, RouteConfig]] = []
    for path, route in routes:
        if not route.on_timeout:
            continue
        rival = next((one for one in takers if _share_transport(one[1], route)), None)
        if rival is None:
            takers.append((path, route))
        else:
            yield (
                f"{path}.on_timeout",
                f"silent clients already go to {rival[0]}: only one route can have them",
            )


def _share_transport(one: RouteConfig, other: RouteConfig) -> bool:
    return one.transport is None or other.transport is None or one.transport is other.transport
