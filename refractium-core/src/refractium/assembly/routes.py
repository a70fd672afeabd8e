"""Resolution of the routes in a configuration into routes that can be served.

The names of protocols, hooks, balancing methods and health checks become the installed objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from refractium.assembly.hooks import resolve_hooks
from refractium.backends.health_settings import PASSIVE, Health, option_problems
from refractium.contract import Balancer, Protocol, Transport
from refractium.errors import ConfigError
from refractium.identify.patterns import compile_patterns
from refractium.problems import unknown_name
from refractium.routing import BALANCERS, Route
from refractium.routing.balancers import DEFAULT
from refractium.settings import HealthSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from refractium.config import (
        RouteConfig,
        ServerConfig,
    )
    from refractium.config.model import Routes
    from refractium.plugins.installed import Plugins

    PluginTables: TypeAlias = Mapping[str, Mapping[str, Any]]


def resolve_all(
    routes: Routes, server: ServerConfig, tables: PluginTables, plugins: Plugins
) -> Iterator[tuple[str, Route | str]]:
    """Yield each route with its key path, or a problem with the key path of the problem."""
    for path, route in routes:
        for found in _resolve(path, route, server, tables, plugins):
            yield (path, found) if isinstance(found, Route) else found


def _resolve(
    path: str, route: RouteConfig, server: ServerConfig, tables: PluginTables, plugins: Plugins
) -> Iterator[Route | tuple[str, str]]:
    """Yield one route for each transport, or a problem: its key path and a message."""
    by_transport = list(_protocols(path, route, server, plugins))
    transports = {one[0].transport for one in by_transport if isinstance(one[0], Protocol)}
    faults: list[tuple[str, str]] = []
    balancer = _balancer(path, route, plugins, faults)
    health = _health(path, route, transports, plugins, faults)
    hooks = resolve_hooks(f"{path}.hooks", route.hooks, tables, plugins, faults)
    yield from faults
    for protocols in by_transport:
        if not isinstance(protocols[0], Protocol):
            yield protocols
            continue
        is_tcp = protocols[0].transport is Transport.TCP
        if not is_tcp and (route.on_timeout or any(backend.is_unix for backend in route.backends)):
            if route.on_timeout and len(by_transport) == 1:
                yield f"{path}.on_timeout", "only a connection can be silent, a datagram cannot"
            if route.transport is None and any(backend.is_unix for backend in route.backends):
                yield f"{path}.forward_to", 'a unix socket takes connections only: add transport = "tcp"'
            continue
        try:
            yield Route(
                protocols,
                route.members,
                sni=route.snis,
                alpn=route.alpns,
                host=route.hosts,
                on_timeout=route.on_timeout if is_tcp else False,
                udp_session_timeout_ms=None if is_tcp else route.udp_session_timeout_ms,
                balance=balancer,
                health=health[protocols[0].transport],
                proxy_protocol=route.proxy_protocol,
                id=route.id,
                allow=route.allow,
                deny=route.deny,
                action=route.action,
                hooks=hooks,
            )
        except ConfigError as error:
            for problem in error.problems:
                if problem.where != "forward_to":  # already among the problems of the file or the flag
                    yield f"{path}.{problem.where}", problem.message


def _balancer(
    path: str, route: RouteConfig, plugins: Plugins, faults: list[tuple[str, str]]
) -> str | type[Balancer]:
    """Return the balancing method that `balance` names. If unknown, add a fault and return the default."""
    if route.balance in BALANCERS:
        return route.balance
    if (found := plugins.balancers.get(route.balance)) is not None:
        return found
    faults.append((f"{path}.balance", unknown_name(route.balance, (*BALANCERS, *plugins.balancers))))
    return DEFAULT


def _health(
    path: str,
    route: RouteConfig,
    transports: set[Transport],
    plugins: Plugins,
    faults: list[tuple[str, str]],
) -> dict[Transport, Health]:
    """Return the health check of the backends, by transport.

    A kind of check may be for one transport only. For the other transport, failed connections of clients show
    that a backend is down.
    """
    if route.health is None:
        return dict.fromkeys(Transport, PASSIVE)
    from refractium.backends.checks import CHECKS, NONE  # noqa: PLC0415 - slow to import, and not always needed

    where, kind = f"{path}.health", route.health.kind
    numbers = {key: getattr(route.health, key) for key in HealthSettings.__struct_fields__}
    by_clients = Health(**numbers)
    checks = CHECKS | plugins.health_checks
    check = checks.get(kind)
    if check is None and kind != NONE:
        faults.append((f"{where}.kind", unknown_name(kind, (*checks, NONE))))
    elif check is None:
        faults += [
            (f"{where}.{key}", 'unknown key for a check of kind "none"') for key in route.health.options
        ]
    elif found := [
        (f"{where}.{key}", message) for key, message in option_problems(check, route.health.options)
    ]:
        faults += found
    elif transports and check.transports.isdisjoint(transports):
        fitting = sorted(name for name, one in checks.items() if not transports.isdisjoint(one.transports))
        message = f'a check of kind "{kind}" is not for {" and ".join(sorted(transports))}'
        faults.append((f"{where}.kind", f"{message}: there are {', '.join(fitting)}"))
    else:
        checked = Health(**numbers, kind=check, options=route.health.options)
        return {one: checked if one in check.transports else by_clients for one in Transport}
    return dict.fromkeys(Transport, by_clients)


def _protocols(
    path: str, route: RouteConfig, server: ServerConfig, plugins: Plugins
) -> Iterator[tuple[Protocol, ...] | tuple[str, str]]:
    """Yield the protocols that a route names, in one tuple for each transport, or a problem."""
    installed = plugins.protocols_named(route.name)
    if route.patterns is not None:
        if installed:
            yield f"{path}.name", f"'{route.name}' is an installed protocol: give these patterns another name"
        for transport in (route.transport,) if route.transport else Transport:
            try:
                yield compile_patterns(route.name, transport, route.pattern_set, server.peek_buffer_size)
            except ValueError:
                return  # already among the problems of the file
        return
    if not installed:
        yield f"{path}.name", plugins.explain_missing(route.name)
        return
    wanted = [one for one in installed if route.transport in {None, one.transport}]
    if not wanted:
        yield f"{path}.transport", f"{route.name} is a protocol for {installed[0].transport} only"
    for protocol in wanted:
        yield (protocol,)
