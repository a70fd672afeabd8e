"""Assembly of file, flags and plugins into a configuration that the engine can serve.

Flags outrank the file. Names in the configuration become the installed protocols, hooks and checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from refractium.assembly import check
from refractium.assembly.hooks import plugin_table_problems, resolve_hooks
from refractium.assembly.routes import resolve_all
from refractium.assembly.sources import (
    DEFAULT_FILE,
    Overrides,
    inline_routes,
    problems_of_place,
    read_sources,
)
from refractium.config import (
    ListenerConfig,
    Loaded,
    LogConfig,
    MetricsConfig,
    ServerConfig,
    Source,
    listeners_of,
)
from refractium.contract import Strength, Transport
from refractium.engine.spec import EngineSpec
from refractium.errors import ConfigError
from refractium.hooks import against_several, used
from refractium.plugins.loading import load_plugins
from refractium.problems import Problem
from refractium.routing import ListenerRules, Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.config.model import Routes
    from refractium.hooks import HookUse
    from refractium.plugins.installed import Plugins

    PluginTables: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Assembly:
    """A configuration that can be served.

    Attributes:
        server: the limits, timeouts and fallbacks.
        listeners: the addresses to listen on, and the routes served there.
        tcp: the routes for connections.
        udp: the routes for datagrams.
        warnings: the settings that are allowed and probably not meant, and the plugins that failed to load.
        log: the limits of the log.
        metrics: the address and host names of the metrics server.
        hooks: the packet hooks of every route and of the fallbacks.
        source: the text of the configuration file and its name.
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
        """Return the listeners to open for some transports, each with its transport.

        These are the listeners with a route or a fallback for the transport. If there is none, return only
        the first listener that has one of the transports.
        """
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

    @property
    def spec(self) -> EngineSpec:
        """The part of this configuration that an engine serves."""
        return EngineSpec(
            self.tcp,
            self.udp,
            self.server.fallback_tcp or (),
            self.server.fallback_udp or (),
            self.server,
            {one.name: self.rules(one) for one in self.listeners},
            self.hooks,
        )

    @staticmethod
    def rules(listener: ListenerConfig) -> ListenerRules:
        """Return the rules of one listener for the engine: its routes, `allow` and `deny`."""
        return ListenerRules(listener.routes, listener.allow, listener.deny)


def installed(overrides: Overrides, loaded: Loaded | None) -> Plugins:
    """Load the plugins that flags, file and environment do not disable."""
    by_file = loaded.config.plugins.disable if loaded is not None else ()
    return load_plugins((*by_file, *overrides.disabled))


def assembled(overrides: Overrides, loaded: Loaded | None = None) -> Assembly:
    """Read the file, load the plugins, and assemble both with the flags.

    Args:
        overrides: the flags.
        loaded: the file, if the caller has read it already.

    Raises:
        ConfigError: there are problems; the error has all of them.
    """
    loaded = loaded or read_sources(overrides)
    return assemble(loaded, overrides, installed(overrides, loaded))


def assemble(loaded: Loaded, overrides: Overrides, plugins: Plugins) -> Assembly:
    """Assemble file, flags and plugins.

    Args:
        loaded: the file.
        overrides: the flags.
        plugins: the installed plugins.

    Raises:
        ConfigError: there are problems in any of them; the error has all of them.
    """
    problems = list(loaded.problems)
    server = msgspec.structs.replace(loaded.config.server, **overrides.server)
    problems += problems_of_place(loaded, overrides)
    listeners = listeners_of(loaded.config, server)
    forwards = list(inline_routes(overrides.forwards, problems))
    replaced = {route.name for _, route in forwards}

    def with_forwards(routes: Routes) -> Routes:
        return [*((path, route) for path, route in routes if route.name not in replaced), *forwards]

    def report(where: str, message: str) -> Problem:
        if where.startswith("-"):  # the place of a flag's problem is the whole flag, without a key path
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
    for path, found in resolve_all(with_forwards(loaded.routes), server, tables, plugins):
        if isinstance(found, Route):
            routes.append((path, found))
        else:
            problems.append(report(path, found))
    if server.worker_count > 1:
        in_use = [used(use) for use in (*hooks, *(use for _, route in routes for use in route.hooks))]
        problems += [report("server.workers", reason) for reason in against_several(in_use)]
    not_loaded = [one for one in plugins.reports if one.status not in {"loaded", "blocked"}]
    broken = [Problem(f"{one} is not used: {one.error}", where=f"plugin {one.id}") for one in not_loaded]
    if overrides.strict_plugins:
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


def _nothing_to_do(loaded: Loaded, plugins: Plugins) -> Problem:
    if not plugins.protocols:
        return Problem("no protocol is installed: pip install 'refractium-protocols[all]'")
    if loaded.source.name:
        return loaded.problem("protocols", "no routes: add [[protocols]] with a name and forward_to")
    return Problem(
        f"no routes: there is no {DEFAULT_FILE} here; `refractium init` writes one, or give -f NAME=HOST:PORT"
    )


def _doubts(routes: Sequence[tuple[str, Route]]) -> Iterator[tuple[str, str]]:
    """Yield the warnings that depend on attributes of the protocols, each with its key path."""
    silent: dict[Transport, Route] = {}
    weak: dict[Transport, Route] = {}
    for path, route in routes:
        if route.takes_silent and silent.setdefault(route.transport, route) is not route:
            yield path, f"silent clients go to {silent[route.transport]}: only one route can have them"
        strengths = {protocol.strength for protocol in route.protocols}
        if route.transport in weak and Strength.WEAK not in strengths:
            yield (
                path,
                f"is asked before {weak[route.transport]}, which stands earlier but has a weaker protocol",
            )
        if strengths == {Strength.WEAK}:
            weak.setdefault(route.transport, route)
