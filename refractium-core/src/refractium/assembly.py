"""From what the operator wrote to what the engine takes: flags over file, names to installed protocols."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from refractium.address import Address
from refractium.config import (
    ListenerConfig,
    Loaded,
    LogConfig,
    MetricsConfig,
    RouteConfig,
    ServerConfig,
    Source,
    check,
    listeners_of,
    load,
    parse,
)
from refractium.config.model import bind_address, protocol_name
from refractium.contract import Balancer, Protocol, Strength, Transport
from refractium.errors import ConfigError, Problem
from refractium.hooking import plugin_table_problems, resolve_hooks
from refractium.hooks import against_several, used
from refractium.identify.patterns import compile_patterns
from refractium.routing import BALANCERS, Health, ListenerRules, Route
from refractium.routing.balancers import DEFAULT
from refractium.routing.health import PASSIVE, option_problems
from refractium.routing.route import unknown_name
from refractium.settings import HealthSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.hooks import HookUse
    from refractium.plugins import Plugins

    PluginTables: TypeAlias = Mapping[str, Mapping[str, Any]]

DEFAULT_FILE: Final = Path("refractium.toml")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What was given on the command line; it comes before the file.

    Attributes:
        file: the configuration file; without it `DEFAULT_FILE` is read where it exists.
        forwards: inline routes, ``NAME=ADDR``; those of one name are one route, which replaces the file's
            routes of that name.
        server: values for keys of ``[server]``.
    """

    file: Path | None = None
    forwards: Sequence[str] = ()
    server: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assembly:
    """A configuration that can be served.

    Attributes:
        server: limits, timeouts, fallbacks.
        listeners: where to listen, and what is served there.
        tcp: the routes for connections.
        udp: the routes for datagrams.
        warnings: what is allowed and probably not meant.
        log: how much is logged.
        metrics: how metrics are served.
        hooks: those of every route and of the fallbacks.
        source: what was read.
    """

    server: ServerConfig
    listeners: tuple[ListenerConfig, ...]
    tcp: tuple[Route, ...]
    udp: tuple[Route, ...]
    warnings: tuple[Problem, ...]
    log: LogConfig
    metrics: MetricsConfig
    hooks: tuple[HookUse, ...]
    source: Source

    def wanted(self, transports: Sequence[Transport]) -> list[tuple[Transport, ListenerConfig]]:
        """What to listen on for some transports: where clients have anywhere to go; else the first."""
        everywhere = [
            (transport, listener)
            for listener in self.listeners
            for transport in transports
            if transport in listener.transports
        ]
        has_fallback = {
            Transport.TCP: self.server.fallback_tcp is not None,
            Transport.UDP: self.server.fallback_udp is not None,
        }
        somewhere = [
            (transport, listener)
            for transport, listener in everywhere
            if has_fallback[transport]
            or any(
                route.transport is transport and self.rules(listener).serves(route.label, route.name)
                for route in (*self.tcp, *self.udp)
            )
        ]
        return somewhere or everywhere[:1]

    @staticmethod
    def rules(listener: ListenerConfig) -> ListenerRules:
        """What one listener does, as the engine takes it."""
        return ListenerRules(listener.routes, listener.allow, listener.deny)


def read(overrides: Overrides) -> Loaded:
    """The configuration file, or an empty one if none was named and there is none.

    Raises:
        ConfigError: it cannot be read, or it was named and is not there.
    """
    if overrides.file is None and not DEFAULT_FILE.exists():
        return parse(Source("", ""))
    return load(overrides.file or DEFAULT_FILE)


def assemble(
    loaded: Loaded, overrides: Overrides, plugins: Plugins, *, strict_plugins: bool = False
) -> Assembly:
    """Put file, flags and plugins together.

    Args:
        loaded: the file.
        overrides: the flags.
        plugins: what is installed.
        strict_plugins: whether a plugin that did not load is a problem even if no route needs it.

    Raises:
        ConfigError: with everything that is wrong in any of them.
    """
    problems = list(loaded.problems)
    server = msgspec.structs.replace(loaded.config.server, **overrides.server)
    problems += _problems_of_place(loaded, overrides)
    listeners = listeners_of(loaded.config, server)
    forwards = list(_forwards(overrides.forwards, problems))
    replaced = {route.name for _, route in forwards}

    def with_forwards(routes: check.Routes) -> check.Routes:
        return [*((path, route) for path, route in routes if route.name not in replaced), *forwards]

    def report(where: str, message: str) -> Problem:
        if where.startswith("-"):  # of a flag, its whole text is the place
            return Problem(message, where.partition(".")[0])
        return loaded.problem(where, message)

    found_together = check.problems(server, listeners, with_forwards(loaded.sound_routes))
    unknown = check.unknown_routes(listeners, with_forwards(loaded.routes))
    problems += [report(*finding) for finding in (*found_together, *unknown)]
    tables = loaded.config.plugins.settings
    faults = list(plugin_table_problems(tables, plugins))
    hooks = resolve_hooks("server.hooks", server.hooks, tables, plugins, faults)
    problems += [report(*finding) for finding in faults]
    routes: list[tuple[str, Route]] = []
    for path, found in _resolve_all(with_forwards(loaded.routes), server, tables, plugins):
        if isinstance(found, Route):
            routes.append((path, found))
        else:
            problems.append(report(path, found))
    if server.worker_count > 1:
        in_use = [used(use) for use in (*hooks, *(use for _, route in routes for use in route.hooks))]
        problems += [report("server.workers", reason) for reason in against_several(in_use)]
    not_loaded = [one for one in plugins.reports if one.status not in {"loaded", "blocked"}]
    broken = [Problem(f"{one} is not used: {one.error}", where=f"plugin {one.id}") for one in not_loaded]
    if strict_plugins:
        problems += broken
    if not (problems or routes or server.fallback_tcp or server.fallback_udp):
        problems.append(_nothing_to_do(loaded, plugins))
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    findings = (*check.warnings(server, listeners, with_forwards(loaded.routes)), *_doubts(routes))
    warnings = [report(*finding) for finding in findings]
    return Assembly(
        server,
        tuple(listener for _, listener in listeners),
        tuple(route for _, route in routes if route.transport is Transport.TCP),
        tuple(route for _, route in routes if route.transport is Transport.UDP),
        (*warnings, *broken),
        loaded.config.log,
        loaded.config.metrics,
        hooks,
        Source(loaded.source.text, loaded.source.name),
    )


def _problems_of_place(loaded: Loaded, overrides: Overrides) -> Iterator[Problem]:
    """What is wrong with the flags that say where to listen."""
    if loaded.config.listeners:
        for key in ("bind", "port"):
            if key in overrides.server:
                yield Problem("the file has [[listeners]], each with its own", where=f"--{key}")
    elif "bind" in overrides.server:  # the file's is valid already
        try:
            bind_address(overrides.server["bind"])
        except ValueError as error:
            yield Problem(str(error), where=f"--bind {overrides.server['bind']}")


def _forwards(texts: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, RouteConfig]]:
    """The routes of the flags, each with the flag it comes from."""
    backends: dict[str, list[str]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        try:
            if not equals:
                raise ValueError("write NAME=HOST:PORT")  # noqa: TRY301
            backends.setdefault(protocol_name(name), []).append(str(Address.parse(address)))
        except ValueError as error:
            problems.append(Problem(str(error), where=f"-f {text}"))
    for name, addresses in backends.items():
        yield f"-f {name}", RouteConfig(name=name, forward_to=tuple(addresses))


def _resolve_all(
    routes: check.Routes, server: ServerConfig, tables: PluginTables, plugins: Plugins
) -> Iterator[tuple[str, Route | str]]:
    """Each route with its key path, or what is wrong, with the key path of that."""
    for path, route in routes:
        for found in _resolve(path, route, server, tables, plugins):
            yield (path, found) if isinstance(found, Route) else found


def _resolve(
    path: str, route: RouteConfig, server: ServerConfig, tables: PluginTables, plugins: Plugins
) -> Iterator[Route | tuple[str, str]]:
    """One route for each transport, or what is wrong: a key path and a message."""
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
                if problem.where != "forward_to":  # reported with the file's or the flag's other problems
                    yield f"{path}.{problem.where}", problem.message


def _balancer(
    path: str, route: RouteConfig, plugins: Plugins, faults: list[tuple[str, str]]
) -> str | type[Balancer]:
    """What `balance` means; the default where that is nothing, with a fault that says so."""
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
    """How the backends are watched, by transport; where a kind is for one only, clients watch the other."""
    if route.health is None:
        return dict.fromkeys(Transport, PASSIVE)
    from refractium.net.checks import CHECKS, NONE  # noqa: PLC0415 - slow to import, and not always needed

    where, kind = f"{path}.health", route.health.kind
    numbers = {key: getattr(route.health, key) for key in HealthSettings.__struct_fields__}
    by_clients = Health(**numbers)
    checks = CHECKS | plugins.health_checks
    check = checks.get(kind)
    if check is None and kind != NONE:
        faults.append((f"{where}.kind", unknown_name(kind, (*checks, NONE))))
    elif check is None:
        faults += [
            (f"{where}.{key}", "unknown key for a check of kind 'none'") for key in route.health.options
        ]
    elif found := [
        (f"{where}.{key}", message) for key, message in option_problems(check, route.health.options)
    ]:
        faults += found
    elif transports and check.transports.isdisjoint(transports):
        fitting = sorted(name for name, one in checks.items() if not transports.isdisjoint(one.transports))
        message = f"a check of kind {kind!r} is not for {' and '.join(sorted(transports))}"
        faults.append((f"{where}.kind", f"{message}: there are {', '.join(fitting)}"))
    else:
        checked = Health(**numbers, kind=check, options=route.health.options)
        return {one: checked if one in check.transports else by_clients for one in Transport}
    return dict.fromkeys(Transport, by_clients)


def _protocols(
    path: str, route: RouteConfig, server: ServerConfig, plugins: Plugins
) -> Iterator[tuple[Protocol, ...] | tuple[str, str]]:
    """The protocols that a route means, those of one transport at a time."""
    installed = plugins.protocols_named(route.name)
    if route.patterns is not None:
        if installed:
            yield f"{path}.name", f"{route.name!r} is an installed protocol: give these patterns another name"
        for transport in (route.transport,) if route.transport else Transport:
            try:
                yield compile_patterns(route.name, transport, route.pattern_set, server.peek_buffer_size)
            except ValueError:
                return  # reported with the file's other problems
        return
    if not installed:
        yield f"{path}.name", plugins.explain_missing(route.name)
        return
    wanted = [one for one in installed if route.transport in {None, one.transport}]
    if not wanted:
        yield f"{path}.transport", f"{route.name} is a protocol for {installed[0].transport} only"
    for protocol in wanted:
        yield (protocol,)


def _nothing_to_do(loaded: Loaded, plugins: Plugins) -> Problem:
    if not plugins.protocols:
        return Problem("no protocol is installed: pip install 'refractium-protocols[all]'")
    if loaded.source.name:
        return loaded.problem("protocols", "no routes: add [[protocols]] with a name and forward_to")
    return Problem(
        f"no routes: there is no {DEFAULT_FILE} here; `refractium init` writes one, or give -f NAME=HOST:PORT"
    )


def _doubts(routes: Sequence[tuple[str, Route]]) -> Iterator[tuple[str, str]]:
    """What is worth a warning and takes knowledge of the protocols to see."""
    silent: dict[Transport, Route] = {}
    weak: dict[Transport, Route] = {}
    for path, route in routes:
        if route.takes_silent and silent.setdefault(route.transport, route) is not route:
            yield path, f"its silent clients go to {silent[route.transport]}: only one route can have them"
        strengths = {protocol.strength for protocol in route.protocols}
        if route.transport in weak and Strength.WEAK not in strengths:
            yield (
                path,
                f"stands behind {weak[route.transport]}, which is weaker: it is asked first all the same",
            )
        if strengths == {Strength.WEAK}:
            weak.setdefault(route.transport, route)
