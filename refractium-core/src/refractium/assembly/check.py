"""Checks whether the values of a configuration, each valid by itself, fit together.

Each check yields pairs of a key path and a message. The caller adds the line number,
because only the caller has the file.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import Address, is_own_address
from refractium.contract import Transport
from refractium.identify.patterns import compile_patterns
from refractium.problems import unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.config.model import Finding, Listeners, RouteConfig, Routes, ServerConfig


_LONG_PEEK_MS: Final = 5_000
"""Milliseconds of `peek_timeout_ms` above which there is a warning."""
_MANY_PER_IP: Final = 200
"""Connections of one client address above which there is a warning."""


def problems(server: ServerConfig, listeners: Listeners, routes: Routes) -> Iterator[Finding]:
    """Yield the problems that make these routes unusable with each other, the listeners or the settings."""
    for path, route in routes:
        yield from _unusable_patterns(path, route, server.peek_buffer_size)
        if route.transport is Transport.UDP:
            for place, backend in _backends(path, route):
                if backend.is_unix:
                    yield place, "a unix socket takes no datagrams here: write HOST:PORT"
    yield from _unusable_identity(server)
    if server.fallback_udp is not None and Address.parse(server.fallback_udp).is_unix:
        yield "server.fallback_udp", "a unix socket takes no datagrams here: write HOST:PORT"
    yield from _same_address(listeners)
    yield from _shared_ids(routes)
    rivals: dict[Finding, None] = {}
    for _, listener in listeners:
        served = [one for one in routes if listener.serves(one[1])]
        rivals |= dict.fromkeys((*_duplicates(served), *_rivals_for_silence(served)))
    yield from rivals


def unknown_routes(listeners: Listeners, routes: Routes) -> Iterator[Finding]:
    """Yield a problem for each name in the ``routes`` of a listener that is no route."""
    known = {name for _, route in routes for name in (route.label, route.name)}
    for path, listener in listeners:
        for at, name in enumerate(listener.routes or ()):
            if name not in known:
                yield f"{path}.routes[{at}]", unknown_name(name, known)


def warnings(server: ServerConfig, listeners: Listeners, routes: Routes) -> Iterator[Finding]:
    """Yield a warning for each setting that is allowed and probably not meant."""
    if server.peek_timeout_ms > _LONG_PEEK_MS:
        yield (
            "server.peek_timeout_ms",
            f"over {_LONG_PEEK_MS} ms, silent clients can hold many connections open",
        )
    if server.max_udp_sessions_per_ip >= server.max_udp_sessions:
        yield "server.max_udp_sessions_per_ip", "one client can take all of max_udp_sessions"
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
        if not any(listener.serves(route) for _, listener in listeners):
            yield path, "no listener serves this route"
    for place, address in targets:
        if any(is_own_address(address, one.bind, one.port) for _, one in listeners):
            yield place, f"Refractium itself listens on {address}, and will never connect to it"


def _unusable_identity(server: ServerConfig) -> Iterator[Finding]:
    try:
        _ = server.identity
    except ValueError as error:
        yield "server.user", str(error)


def _backends(path: str, route: RouteConfig) -> Iterator[tuple[str, Address]]:
    for index, address in enumerate(route.backends):
        yield (f"{path}.forward_to" + (f"[{index}]" if isinstance(route.forward_to, tuple) else "")), address


def _repeated_backends(path: str, route: RouteConfig) -> Iterator[Finding]:
    seen: set[Address] = set()
    for place, address in _backends(path, route):
        if address in seen:
            yield place, f"{address} is in this route already: give it a weight to send it more clients"
        seen.add(address)


def _same_address(listeners: Listeners) -> Iterator[Finding]:
    first: dict[tuple[str, Transport], str] = {}
    for path, listener in listeners:
        rivals = {first.setdefault((listener.name, one), path) for one in listener.transports} - {path}
        if rivals:
            yield path, f"has the same address as {rivals.pop()}: put both listeners into one"


def _shared_ids(routes: Routes) -> Iterator[Finding]:
    names = {route.name: path for path, route in routes if route.id is None}
    first: dict[str, str] = {}
    for path, route in routes:
        if route.id is None:
            continue
        rival = first.setdefault(route.id, path)
        if rival != path:
            yield f"{path}.id", f"{rival} has this id already: choose another"
        elif route.id in names:
            yield f"{path}.id", f"{names[route.id]} has this name, after its protocol: choose another id"


def _unusable_patterns(path: str, route: RouteConfig, peek_buffer_size: int) -> Iterator[Finding]:
    for index, pattern in enumerate(route.pattern_set):
        try:
            compile_patterns(route.name, Transport.TCP, (pattern,), peek_buffer_size)
        except ValueError as error:
            yield f"{path}.patterns[{index}]", str(error)


def _duplicates(routes: Routes) -> Iterator[Finding]:
    """Yield routes that take clients of an earlier route of their protocol, so that only order would decide.

    A route without a condition does not duplicate a route with one: it takes the clients that are left over.
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
