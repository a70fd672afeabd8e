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
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding

    PluginTables: TypeAlias = Mapping[str, Mapping[str, Any]]


def resolve_route(
    path: str,
    route: RouteConfig,
    server: ServerConfig,
    tables: PluginTables,
    plugins: Plugins,
    *,
    is_sound: bool,
) -> Iterator[Route | Finding]:
    """Yield one `Route` for each transport, and a key path with a message for each problem.

    Args:
        path: the key path or the flag that defines the route.
        route: the route.
        server: the settings of ``[server]``.
        tables: the tables ``[plugins.ID]``, by the id of the plugin.
        plugins: the installed plugins.
        is_sound: whether `decode` has accepted every key of the route. If not, this function resolves only
            the names in the route, because a missing value would cause further problems.
    """
    faults: list[Finding] = []
    by_transport = _protocols(path, route, server, plugins, faults, is_sound=is_sound)
    balancer = _balancer(path, route, plugins, faults)
    health = _health(path, route, set(by_transport), plugins, faults)
    hooks = resolve_hooks(f"{path}.hooks", route.hooks, tables, plugins, faults)
    yield from faults
    for transport, protocols in by_transport.items() if is_sound else ():
        is_tcp = transport is Transport.TCP
        if not is_tcp and len(by_transport) > 1:
            if route.on_timeout:  # only a connection can be silent
                continue
            if any(backend.is_unix for backend in route.backends):
                yield f"{path}.forward_to", 'a unix socket takes connections only: add transport = "tcp"'
                continue
        if not is_tcp and route.on_timeout:
            yield f"{path}.on_timeout", "only a connection can be silent, a datagram cannot"
        try:
            yield Route(
                protocols,
                route.forward_to,
                sni=route.sni,
                alpn=route.alpn,
                host=route.host,
                match=route.match,
                on_timeout=route.on_timeout if is_tcp else False,
                # In a table for both transports, a key for connections does not apply to the datagrams, and
                # a key for datagrams does not apply to the connections.
                idle_timeout_ms=route.idle_timeout_ms if is_tcp or len(by_transport) == 1 else None,
                half_close_timeout_ms=(
                    route.half_close_timeout_ms if is_tcp or len(by_transport) == 1 else None
                ),
                udp_session_timeout_ms=None if is_tcp else route.udp_session_timeout_ms,
                udp_responses=route.udp_responses if not is_tcp or len(by_transport) == 1 else None,
                balance=balancer,
                health=health[transport],
                proxy_protocol=route.proxy_protocol,
                id=route.id,
                client=route.client,
                allow=route.allow,
                deny=route.deny,
                action=route.action,
                hooks=hooks,
            )
        except ConfigError as error:
            for problem in error.problems:  # the key `name` becomes the argument `protocol`
                key = "name" if problem.where == "protocol" else problem.where
                yield f"{path}.{key}", problem.message


def _balancer(path: str, route: RouteConfig, plugins: Plugins, faults: list[Finding]) -> str | type[Balancer]:
    """Return the balancing method that `balance` names; else add a fault and return `DEFAULT`."""
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
    faults: list[Finding],
) -> dict[Transport, Health]:
    """Return the health check of the backends, by transport.

    Some kinds of check support only one transport. For the other transport, failed connections of clients
    show that a backend is down.
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
        (f"{where}.{key}".rstrip("."), message)
        for key, message in option_problems(check, route.health.options)
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
    path: str,
    route: RouteConfig,
    server: ServerConfig,
    plugins: Plugins,
    faults: list[Finding],
    *,
    is_sound: bool,
) -> dict[Transport, tuple[Protocol, ...]]:
    """Return the `Protocol` objects that a route names, by transport. Add the problems to `faults`."""
    installed = plugins.protocols_named(route.name)
    if route.patterns is not None:
        if installed:
            message = f"'{route.name}' is an installed protocol: give these patterns another name"
            faults.append((f"{path}.name", message))
        return _defined_protocols(path, route, server, faults) if is_sound else {}
    if not installed:
        faults.append((f"{path}.name", plugins.explain_missing(route.name)))
        return {}
    wanted: dict[Transport, tuple[Protocol, ...]] = {
        one.transport: (one,) for one in installed if route.transport in {None, one.transport}
    }
    if not wanted:
        message = f"{route.name} is a protocol for {installed[0].transport} only"
        faults.append((f"{path}.transport", message))
    return wanted


def _defined_protocols(
    path: str, route: RouteConfig, server: ServerConfig, faults: list[Finding]
) -> dict[Transport, tuple[Protocol, ...]]:
    """Return the protocol that the patterns of a route define, by transport."""
    before = len(faults)
    for index, pattern in enumerate(route.pattern_set):
        try:
            compile_patterns(route.name, Transport.TCP, (pattern,), server.peek_buffer_size)
        except ValueError as error:
            faults.append((f"{path}.patterns[{index}]", str(error)))
    if len(faults) > before:
        return {}
    return {
        transport: compile_patterns(route.name, transport, route.pattern_set, server.peek_buffer_size)
        for transport in ((route.transport,) if route.transport else Transport)
    }
