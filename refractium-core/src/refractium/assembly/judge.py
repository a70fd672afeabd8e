"""Judgement of a resolved configuration: the problems that make it unusable, and the warnings about it.

`refractium.routing.judge` contains the rules for routes, which also apply to the routes of a program. This
module adds the rules for the other settings of a configuration file, and for flags.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import is_own_address
from refractium.assembly.sources import DEFAULT_FILE
from refractium.config.decode import MAX_FINDINGS
from refractium.contract import Strength, Transport
from refractium.hooks import against_several, used
from refractium.plugins.loading import DISABLE_VARIABLE, disabled_by_environment
from refractium.problems import Problem
from refractium.routing.judge import covered, rivals_for_silence
from refractium.routing.judge import judge as judge_routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refractium.addresses.address import Address
    from refractium.assembly.resolve import Resolved
    from refractium.assembly.sources import Overlaid
    from refractium.config import ServerConfig
    from refractium.config.model import Listeners
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding
    from refractium.routing import Route
    from refractium.routing.judge import PlacedRoutes


_LONG_PEEK_MS: Final = 5_000
"""Value of `peek_timeout_ms` (ms) above which `warnings` yields a warning."""
_MANY_PER_IP: Final = 200
"""Value of `max_connections_per_ip` (connections) above which `warnings` yields a warning."""


def problems(resolved: Resolved) -> Iterator[Problem]:
    """Yield the problems of all steps. Each problem makes the configuration unusable."""
    overlaid = resolved.overlaid
    found = list(resolved.problems)
    names = {name for _, route in overlaid.routes for name in (route.label, route.name)}
    rules = [(path, listener.rules) for path, listener in overlaid.listeners]
    findings = chain(
        _same_address(overlaid.listeners),
        judge_routes(resolved.routes, rules, names),
        _against_workers(resolved),
    )
    found += [overlaid.problem(*finding) for finding in islice(findings, MAX_FINDINGS)]
    if overlaid.overrides.strict_plugins:
        found += _broken_plugins(resolved.plugins)
    if not (found or resolved.routes):
        found.append(_nothing_to_do(overlaid, resolved.plugins))
    yield from found


def warnings(resolved: Resolved) -> Iterator[Problem]:
    """Yield a warning about each valid setting that may be a mistake, and each plugin that did not load."""
    overlaid = resolved.overlaid
    findings = chain(
        _long_peeks(overlaid),
        _wide_limits(overlaid.server),
        _doubtful_targets(resolved),
        _doubtful_orders(resolved.routes, overlaid.listeners),
        _without_backends(resolved),
    )
    yield from (overlaid.problem(*finding) for finding in findings)
    yield from _unknown_in_environment(resolved.plugins)
    yield from _broken_plugins(resolved.plugins)
    yield from _outdated_plugins(resolved.plugins)


# Problems


def _same_address(listeners: Listeners) -> Iterator[Finding]:
    first: dict[tuple[str, Transport], str] = {}
    for path, listener in listeners:
        rivals = {first.setdefault((listener.name, one), path) for one in listener.transports} - {path}
        if rivals:
            yield path, f"has the same address as {rivals.pop()}: put both listeners into one"


def _against_workers(resolved: Resolved) -> Iterator[Finding]:
    if resolved.overlaid.server.worker_count > 1:
        hooks = chain(resolved.hooks, *(route.hooks for _, route in resolved.routes))
        for reason in against_several(list(map(used, hooks))):
            yield "server.workers", reason


def _nothing_to_do(overlaid: Overlaid, plugins: Plugins) -> Problem:
    if not plugins.protocols:
        return Problem(plugins.explain_nothing())
    if overlaid.decoded.source.name:
        return overlaid.problem("protocols", "no routes: add [[protocols]] with a name and forward_to")
    return Problem(
        f"no routes: there is no {DEFAULT_FILE} here; `refractium init` writes one, or give -f NAME=HOST:PORT"
    )


# Problems with --strict-plugins, else warnings


def _broken_plugins(plugins: Plugins) -> Iterator[Problem]:
    for one in plugins.entries:
        if one.status not in {"loaded", "blocked"}:
            yield Problem(f"{one} is not used: {one.error}", where=f"plugin {one.id}")


# Warnings


def _outdated_plugins(plugins: Plugins) -> Iterator[Problem]:
    for one in plugins.entries:
        if one.id in plugins.outdated:
            message = (
                f"{one} still runs, although {plugins.outdated[one.id]} is installed: restart Refractium"
            )
            yield Problem(message, where=f"plugin {one.id}")


def _unknown_in_environment(plugins: Plugins) -> Iterator[Problem]:
    """Yield a warning for each id that the environment disables although no plugin has the id.

    This is a warning and no error, because several programs may share one environment.
    """
    ids = {plugin.id for plugin in plugins.entries}
    for id_ in disabled_by_environment():
        if id_ not in ids:
            yield Problem(plugins.explain_unknown_id(id_), where=DISABLE_VARIABLE)


def _long_peeks(overlaid: Overlaid) -> Iterator[Finding]:
    peeks = [("server", overlaid.server.peek_timeout_ms)]
    peeks += [(path, one.peek_timeout_ms or 0) for path, one in overlaid.listeners]
    for path, timeout_ms in peeks:
        if timeout_ms > _LONG_PEEK_MS:
            yield (
                f"{path}.peek_timeout_ms",
                f"over {_LONG_PEEK_MS} ms, silent clients can hold many connections open",
            )


def _wide_limits(server: ServerConfig) -> Iterator[Finding]:
    if server.max_udp_sessions_per_ip >= server.max_udp_sessions:
        yield "server.max_udp_sessions_per_ip", "one client can take all of max_udp_sessions"
    if server.max_connections_per_ip >= server.max_connections:
        yield "server.max_connections_per_ip", "one client can take all of max_connections"
    elif server.max_connections_per_ip > _MANY_PER_IP:
        yield "server.max_connections_per_ip", f"over {_MANY_PER_IP}, it hardly limits a single client"


def _doubtful_targets(resolved: Resolved) -> Iterator[Finding]:
    """Yield the findings about the backends of each route, and each route that no listener serves.

    A listener is open for a transport only if the listener serves a route for this transport.
    """
    listeners = [one for _, one in resolved.overlaid.listeners]
    serving = [
        (path, route, one)
        for path, route in resolved.routes
        for one in listeners
        if route.transport in one.transports and one.rules.serves(route.label, route.name)
    ]
    is_open = {(route.transport, one.name): one for _, route, one in serving}
    served = {path for path, _, _ in serving}
    found: dict[Finding, None] = {}  # a route for both transports is there twice
    for path, route in resolved.routes:
        backends = list(_backends(path, route))
        found.update(dict.fromkeys(_repeated(backends)))
        if path not in served:
            found[path, "no listener serves this route"] = None
        for place, address in backends:
            if any(
                transport is route.transport and is_own_address(address, one.bind, one.port)
                for (transport, _), one in is_open.items()
            ):
                message = f"Refractium itself listens on {address}, and will never connect to it"
                found[place, message] = None
    yield from found


def _backends(path: str, route: Route) -> Iterator[tuple[str, Address]]:
    if path.startswith("server."):  # the key of a fallback contains the address
        yield from ((path, address) for address in route.backends)
        return
    for index, address in enumerate(route.backends):
        yield (f"{path}.forward_to" + (f"[{index}]" if isinstance(route.forward_to, tuple) else "")), address


def _repeated(backends: Iterable[tuple[str, Address]]) -> Iterator[Finding]:
    seen: set[Address] = set()
    for place, address in backends:
        if address in seen:
            yield place, f"{address} is in this route already: give it a weight to send it more clients"
        seen.add(address)


def _doubtful_orders(routes: PlacedRoutes, listeners: Listeners) -> Iterator[Finding]:
    """Yield the findings about the order of the routes of each listener.

    The order matters only among the routes of one listener.
    """
    found: dict[Finding, None] = {}
    for _, listener in listeners:
        served = [
            (path, one)
            for path, one in routes
            if one.transport in listener.transports and listener.rules.serves(one.label, one.name)
        ]
        found.update(dict.fromkeys(_doubtful_orders_of_a_listener(served)))
    yield from found


def _doubtful_orders_of_a_listener(routes: PlacedRoutes) -> Iterator[Finding]:
    """Yield each second route for silent clients, and each route that is asked before an earlier route."""
    yield from covered(routes)
    silent = [(path, route) for path, route in routes if route.takes_silent]
    for path, _, rival in rivals_for_silence(silent):
        yield path, f"silent clients go to {rival}: only one route can have them"
    weak: dict[Transport, Route] = {}
    for path, route in routes:
        strengths = {protocol.strength for protocol in route.protocols}
        if route.transport in weak and Strength.WEAK not in strengths:
            yield (
                path,
                f"is asked before {weak[route.transport]}, which stands earlier but has a weaker protocol",
            )
        if strengths == {Strength.WEAK}:
            weak.setdefault(route.transport, route)


def _without_backends(resolved: Resolved) -> Iterator[Finding]:
    server = resolved.overlaid.server
    has_fallback = server.fallback_tcp or server.fallback_udp
    if not has_fallback and all(route.action for _, route in resolved.routes):
        yield "protocols", "no route has a backend: add a route with forward_to, or set fallback_tcp"
